"""Docstrings name functions as Sphinx does and describe several arguments in one line; mkdocstrings reads neither."""

import re
from typing import Any

import griffe

from docs.generators.markdown import without_roles

_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.M)


class Roles(griffe.Extension):
    """Turns :func:`run` into `run`, and ``mean, std: of the images`` into a line for each."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring:
            obj.docstring.value = _SEVERAL.sub(_each, without_roles(obj.docstring.value))


def _each(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))
