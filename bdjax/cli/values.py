"""Values of flags that are seen to be wrong before a command line is parsed: commas between them, words for numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from bdjax.errors import UserError, quoted

NUMBERS = {int: "a whole number", float: "a number"}
NAMED = ("--dataset", "--model", "--attack", "--defense")  # flags of names, which hold no comma unless they are paths
TARGET = "--target"


def look(words: Sequence[str], known: Mapping[str, Any]) -> None:
    """Say what is wrong with a flag's value, if that can be seen without parsing.

    Args:
      words: those after the name of the command.
      known: the flags of the command and the types of their values.

    Raises:
      UserError: several values with commas between them, or a word where a number is needed.
    """
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            if not equals:
                continue
            word = value
        if flag in known:
            _value(flag, word, *_kind(known[flag]))


def _kind(hint: Any) -> tuple[type | None, bool]:
    """The type of a flag's values where it is one, and whether it takes several."""
    union = get_origin(hint) not in (tuple, None)
    options = [option for option in (get_args(hint) if union else (hint,)) if option is not type(None)]
    several = [option for option in options if get_origin(option) is tuple]
    kinds = [get_args(option)[0] for option in several] or options
    return (kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else None), bool(several)


def _value(flag: str, word: str, kind: type | None, several: bool) -> None:
    parts = [part for part in (part.strip() for part in word.split(",")) if part]
    if kind in NUMBERS and not _is(kind, word):
        if "," in word and several and all(_is(kind, part) for part in parts):
            raise _spaces(flag, word, parts)
        more = f", or several separated by spaces: {quoted(flag, 0, 1)}" if several else ""
        what = "the number of a class, counted from 0" if flag == TARGET else NUMBERS[kind]
        raise UserError(f"{flag} takes {what}{more}; given {word!r}")
    if several and flag in NAMED and len(parts) > 1 and not ("/" in word or ".py" in word or Path(word).exists()):
        raise _spaces(flag, word, parts)


def _spaces(flag: str, word: str, parts: Sequence[str]) -> UserError:
    return UserError(f"separate several values by spaces: {quoted(flag, *parts)}; given {word!r}")


def _is(kind: Any, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
