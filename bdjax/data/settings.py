"""``dataset.json``: what a folder of the user's own says about itself."""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bdjax.errors import UserError, unknown

SETTINGS = "dataset.json"


def _word(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_.-]+", value))


def _size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side >= 1 for side in value)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (1, 3)
        and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    )


def _range(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    return numbers and value[0] < value[1]


# {key: (what is allowed, whether a value is)}; bool is an int in Python, so types are compared exactly
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a word of letters, digits, '.', '_' and '-'", _word),
    "image_size": ("[height, width], whole numbers >= 1", _size),
    "channels": ("1 (greyscale) or 3", lambda v: type(v) is int and v in (1, 3)),
    "value_range": ("[low, high], two numbers, low < high: the values that become black and white", _range),
    "flip": ("true or false", lambda v: isinstance(v, bool)),
    "pad": ("a whole number of pixels >= 0", lambda v: type(v) is int and v >= 0),
    "classes": ("a whole number >= 2", lambda v: type(v) is int and v >= 2),
    "class_names": ("a list of words", _words),
    "mean": ("1 or 3 numbers", _numbers),
    "std": ("1 or 3 numbers > 0", lambda v: _numbers(v) and min(v) > 0),
}


def settings(folder: Path, allowed: Iterable[str]) -> dict[str, Any]:
    """Return what ``dataset.json`` says; {} where a folder has none.

    Args:
      folder: of the data set.
      allowed: keys of ``CHECKS`` that make sense for its kind.

    Raises:
      UserError: no JSON object, a key that is not allowed, or a value out of range.
    """
    path = folder / SETTINGS
    try:
        given = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} holds no JSON object {{...}}.")
    keys = list(allowed)
    for key, value in given.items():
        if key not in keys:
            raise unknown(f"key of {path}", key, keys)
        what, fits = CHECKS[key]
        if not fits(value):
            raise UserError(f"{path}: {key} is {value!r}; allowed is {what}.")
    return given


def title(folder: Path, given: dict[str, Any], taken: tuple[str, ...]) -> str:
    """Return the name of a folder's data set: what its settings say, or the folder's own, other characters as ``_``.

    Args:
      folder: of the data set.
      given: its settings.
      taken: names it must not have.

    Raises:
      UserError: the name is taken.
    """
    name = given.get("name") or re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.resolve().name)
    if name in taken:
        raise UserError(f'{folder} would be named {name}, as a built-in data set is; put another "name" into its {SETTINGS}.')
    return name
