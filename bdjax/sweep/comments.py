"""What stands beside code for its readers: the paragraphs of a docstring, the comments behind the fields of a class."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")  # as in :class:`Config`


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring as one line; empty if it has none."""
    return _line((inspect.getdoc(function) or "").partition("\n\n")[0])


def paragraph(function: Callable[..., Any], title: str) -> str:
    """The paragraph of a docstring that begins with ``title:``, as one line; empty if there is none."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^{title}:\s*(.*?)(?=\n\s*\n|\n[A-Z][a-z]+:|\Z)", text, re.S | re.M)
    return _line(found[1]) if found else ""


def comments(kind: type, beside: Callable[..., Any]) -> dict[str, str]:
    """The comments behind the fields of a class, {field: comment}; a field without one is not in it.

    Args:
      kind: a NamedTuple.
      beside: a function; the class is looked for in its file where Python does not know another.
    """
    text = _source(kind, beside)
    if not text:
        return {}
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    behind = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    (body,) = ast.parse(text).body
    assert isinstance(body, ast.ClassDef)
    lines = {
        node.target.id: node.end_lineno
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: _line(behind[line].lstrip("# ")) for name, line in lines.items() if line in behind}


def _source(kind: type, beside: Callable[..., Any]) -> str:
    """The text of a class; of one in a user's file, which is imported apart, too."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        pass
    try:
        whole = Path(inspect.getsourcefile(inspect.unwrap(beside)) or "").read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""
    found = [node for node in ast.parse(whole).body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    return ast.get_source_segment(whole, found[0]) or "" if found else ""


def _line(text: str) -> str:
    return " ".join(_ROLE.sub(r"\1", text).replace("``", "`").split())
