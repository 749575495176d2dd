"""Methods and networks by name: an entry of a table, or ``path/to/file.py:factory`` for a user's own."""

import ast
import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bdjax.errors import PluginError, UserError, unknown
from bdjax.plugins.explain import reason
from bdjax.plugins.isolation import FileModules
from bdjax.plugins.made import Factory, checked
from bdjax.plugins.running import Loaded, where
from bdjax.train import user_code
from bdjax.train.user_code import is_path

_loaded: dict[str, Loaded] = {}
_settled: set[str] | None = None  # files that are not read again while a block of `settled` runs


def spelled(given: str, names: Iterable[str], flag: str) -> str:
    """Return the full name of a method or network: itself, or ``file.py:factory`` of the one file whose factory has this name.

    A name that nothing has is returned as it is.

    Args:
      given: what was written.
      names: those that run.
      flag: where it was written, for the message.

    Raises:
      UserError: several files have a factory of this name.
    """
    known = list(dict.fromkeys(names))
    found = [name for name in known if is_path(name) and name.rpartition(":")[2] == given]
    if given in known or not found:
        return given
    if len(found) > 1:
        raise UserError(f"{flag} {given!r} may be {' or '.join(found)}: write it with its file, as here")
    return found[0]


def factory(kind: str, name: str, table: Mapping[str, Factory]) -> Factory:
    """Return the factory of a method or network.

    What a user's own factory returns finds its imports as its file would, and its failures raise :class:`PluginError`.

    Args:
      kind: of :data:`bdjax.plugins.made.KINDS`.
      name: a name of ``table`` or ``path/to/file.py:factory``.
      table: built-in factories.

    Raises:
      UserError: no such name, file or function, or a file that cannot be imported.
    """
    if not is_path(name):
        if name.endswith(".py"):
            raise _without_factory(kind, name)
        if name not in table:
            raise UserError(f"{unknown(kind, name, table)} One of your own is written path/to/file.py:factory.")
        return table[name]
    path, _, attribute = name.rpartition(":")
    loaded = _load(kind, path)
    found = getattr(loaded.module, attribute, None)
    if not callable(found):
        own = loaded.module.__name__
        functions = [n for n, v in vars(loaded.module).items() if inspect.isfunction(v) and v.__module__ == own]
        raise unknown(f"factory in {path}", attribute, functions)
    return checked(kind, name, found, loaded)


def _without_factory(kind: str, name: str) -> UserError:
    """The error for a file alone, with the functions that it defines; nothing of it is run."""
    try:
        body = ast.parse(Path(name).read_bytes()).body
    except OSError as error:
        written = f"{name}:{Path(name).stem}"
        why = error.strerror or type(error).__name__
        return UserError(f"{kind} {name!r} is a file: name the factory in it too, as in {written}; it cannot be read: {why}")
    except (SyntaxError, ValueError):
        body = []
    there = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    which = f"it defines {', '.join(there)}" if there else "it defines no function that could be one"
    written = f"{name}:{there[-1] if there else 'FACTORY'}"
    return UserError(f"{kind} {name!r} is a file: name the factory in it too, as in {written}; {which}")


def source_digest(name: str) -> str | None:
    """Return the sha256 of a user's own file and of what it imports or names, so that an edit is a new experiment.

    Args:
      name: of a method or network; None is returned for those of this package.

    Raises:
      UserError: the file is missing, or cannot be imported.
    """
    return _load("method", name.rpartition(":")[0]).digest if is_path(name) else None


def load_python(kind: str, path: str) -> Any:
    """Import a Python file as a module of its own.

    Raises:
      UserError: the file is missing or its code fails.
    """
    return _load(kind, path).module


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Read every file at most once while the block runs, so that an edit during a run does not mix its results."""
    global _settled
    before = _settled
    _settled = set() if before is None else before
    try:
        yield
    finally:
        _settled = before


def _load(kind: str, given: str) -> Loaded:
    """Return a file as it is now; it is run again if it or what it imports has changed."""
    path = str(Path(given).resolve())
    known = _loaded.get(path)
    if known is None or (not (_settled and path in _settled) and _digest(known.modules) != known.digest):
        known = _loaded[path] = _run(kind, Path(path))
    if _settled is not None:
        _settled.add(path)
    return known


def _digest(modules: FileModules) -> str | None:
    try:
        return user_code.digest(modules.path, modules.inspect().files)
    except OSError:  # one of them is gone
        return None


def _run(kind: str, path: Path) -> Loaded:
    _loaded.pop(str(path), None)
    if not path.is_file():
        raise UserError(f"{kind} file {path} does not exist")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path of the {kind} file {path} is not UTF-8, and JAX compiles nothing from there; rename it"
        ) from None
    modules = FileModules(path)
    try:
        module = modules.load()
        return Loaded(module, modules, user_code.digest(path, modules.parts.files), {})
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        here = where(error, modules) or str(path)
        raise PluginError(here, f"{kind} file {path} fails when imported: {reason(error)}") from error
