"""Markdown from plain text and values."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")  # as in :class:`Config`
_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.S)
_SPECIAL = re.compile(r"([*_<>|\[\]\\])")


def without_roles(text: str) -> str:
    """Docstrings name functions as Sphinx does, :func:`run`; Markdown knows `run`."""
    return _ROLE.sub(r"`\1`", text)


def escaped(text: str) -> str:
    """Plain text as Markdown that looks the same; what stands between backticks stays code."""
    parts = _CODE.split(without_roles(text))
    return "".join(part if i % 2 else _SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def value(found: Any) -> str:
    """A value as flags take it, as code."""
    text = found if isinstance(found, str) else "None" if found is None else json.dumps(found)
    return f"`{text}`".replace("|", "\\|") if text else '`""`'


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def outside_code(text: str) -> list[str]:
    """The lines of a page, empty where a block of code stands."""
    lines, fence = [], ""
    for line in text.splitlines():
        found = re.match(r"\s*(```+|~~~+)", line)
        if fence:
            fence = "" if found and found[1] == fence else fence
            lines.append("")
        elif found:
            fence = found[1]
            lines.append("")
        else:
            lines.append(line)
    return lines
