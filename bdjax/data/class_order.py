"""The order of class folders: which label a folder's images get."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[0-9]+", re.ASCII)


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names in the order of their labels: by value where all of them are whole numbers, else by text.

    So the folders 0 … 11 are the classes 0 … 11, and not 0, 1, 10, 11, 2, ….
    """
    found = list(names)
    return sorted(found, key=lambda name: (int(name), name)) if _numbered(found) else sorted(found)


def _numbered(names: list[str]) -> bool:
    return bool(names) and all(_NUMBER.fullmatch(name) for name in names)
