"""Methods by name: an entry of a table, or ``path/to/file.py:factory`` for a user's own."""

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdjax.errors import UserError, unknown

Factory = Callable[..., Any]


def is_path(name: str) -> bool:
    """Whether ``name`` means a file and not an entry of a table."""
    return ".py:" in name


def factory(kind: str, name: str, table: Mapping[str, Factory]) -> Factory:
    """The factory of a method.

    Args:
      kind: "attack" or "defense", for messages.
      name: a name of ``table`` or ``path/to/file.py:factory``.
      table: built-in factories.

    Raises:
      UserError: no such name, file or function, or a file that cannot be imported.
    """
    if not is_path(name):
        if name not in table:
            raise unknown(kind, name, table)
        return table[name]
    path, _, attribute = name.rpartition(":")
    module = _module(kind, str(Path(path).resolve()))
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise unknown(f"factory in {path}", attribute, functions)
    return found


def source_digest(name: str) -> str | None:
    """sha256 of the file of a user's own method, so that an edited file is a new experiment; None for built-in ones."""
    if not is_path(name):
        return None
    return hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()


def load_python(kind: str, path: str) -> Any:
    """Import a Python file as a module of its own.

    Raises:
      UserError: the file is missing or its code fails.
    """
    return _module(kind, str(Path(path).resolve()))


@functools.lru_cache(maxsize=64)
def _module(kind: str, path: str) -> Any:
    if not Path(path).is_file():
        raise UserError(f"{kind} file {path} does not exist")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path of the {kind} file {path} is not UTF-8, and JAX compiles nothing from there; rename it"
        ) from None
    name = "bdjax_file_" + hashlib.sha256(path.encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{kind} file {path} is not Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} file {path} fails when imported: {type(error).__name__}: {error}") from error
    return module
