"""Docstrings name functions as Sphinx does; mkdocstrings reads Markdown."""

from typing import Any

import griffe

from docs.generators.markdown import without_roles


class Roles(griffe.Extension):
    """Turns :func:`run` into `run`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring:
            obj.docstring.value = without_roles(obj.docstring.value)
