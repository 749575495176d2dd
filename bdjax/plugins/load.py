"""Methods by name: an entry of a table, or ``path/to/file.py:factory`` for a user's own."""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.errors import PluginError, UserError, unknown
from bdjax.plugins.explain import reason
from bdjax.plugins.isolation import FileModules
from bdjax.plugins.usable import HOOKS, described, problem_of
from bdjax.train import user_code
from bdjax.types import Attack, Defense

Factory = Callable[..., Any]
KINDS: Mapping[str, Any] = {"attack": Attack, "defense": Defense}


class _Loaded(NamedTuple):
    module: Any
    modules: FileModules
    digest: str


_loaded: dict[str, _Loaded] = {}
_settled: set[str] | None = None  # files that are not read again while a block of `settled` runs


def is_path(name: str) -> bool:
    """Return whether ``name`` means a file and not an entry of a table."""
    return ".py:" in name


def spelled(given: str, names: Iterable[str], flag: str) -> str:
    """Return the full name of a method: itself, or ``file.py:factory`` of the one file whose factory has this name.

    A name that nothing has is returned as it is.

    Args:
      given: what was written.
      names: methods that run.
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
    """Return the factory of a method.

    What a user's own factory returns finds its imports as its file would, and its failures raise :class:`PluginError`.

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
    loaded = _load(kind, path)
    found = getattr(loaded.module, attribute, None)
    if not callable(found):
        own = loaded.module.__name__
        functions = [n for n, v in vars(loaded.module).items() if inspect.isfunction(v) and v.__module__ == own]
        raise unknown(f"factory in {path}", attribute, functions)
    return _checked(kind, attribute, found, loaded)


def source_digest(name: str) -> str | None:
    """Return the sha256 of the file of a user's own method and of what it imports or names, so that an edit is a new experiment.

    None for built-in methods.

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


def _load(kind: str, given: str) -> _Loaded:
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


def _run(kind: str, path: Path) -> _Loaded:
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
        return _Loaded(module, modules, user_code.digest(path, modules.parts.files))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        where = _where(error, modules) or str(path)
        raise PluginError(where, f"{kind} file {path} fails when imported: {reason(error)}") from error


def _checked(kind: str, attribute: str, found: Factory, loaded: _Loaded) -> Factory:
    """Wrap a user's factory so that its mistakes raise :class:`PluginError` with one line."""
    subject = "spec" if kind == "attack" else "model"
    here = place(found) or str(loaded.modules.path)

    @functools.wraps(found)
    def make(*arguments: Any, **named: Any) -> Any:
        try:
            inspect.signature(found).bind(*arguments, **named)
        except TypeError as error:
            form = f'def {attribute}({subject}, config=None, *, profile="corrected")'
            raise PluginError(here, f"{attribute} is called with {subject}, config and profile: {error}; write {form}") from error
        except ValueError:  # its signature is not known
            pass
        with _within(loaded, attribute, here):
            built = found(*arguments, **named)
        if not isinstance(built, KINDS[kind]):
            other = next((name for name, type_ in KINDS.items() if isinstance(built, type_)), None)
            hint = f"; name it with --{other}" if other else f"; it has to return bdjax.types.{KINDS[kind].__name__}(...)"
            raise PluginError(here, f"{attribute} is no {kind}: it returns {described(built)}{hint}")
        problem = problem_of(built)
        if problem:
            raise PluginError(here, f"{attribute} cannot be used: {problem}")
        if lost := _lost(built.config, named.get("config", arguments[1] if len(arguments) > 1 else None)):
            raise PluginError(
                here,
                f"{attribute} is given {lost!r}, and the configuration that it returns has no such field: records of different "
                f"values would pass for the same experiment; return a configuration with it, "
                f"{KINDS[kind].__name__}(..., config=...)",
            )
        return _with_own_imports(built, loaded, attribute)

    return make


def _lost(returned: Any, given: Any) -> str | None:
    """The first field that a user's method was given and that the configuration it returns, which records hold, lacks."""
    if not isinstance(given, Mapping):
        return None
    held = returned._asdict() if hasattr(returned, "_asdict") else returned if isinstance(returned, Mapping) else {}
    return next((field for field in given if field not in held), None)


def _with_own_imports(built: Any, loaded: _Loaded, attribute: str) -> Any:
    """Return a method whose functions find the imports of its file."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        here = place(function) or str(loaded.modules.path)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with _within(loaded, attribute, here):
                return function(*arguments, **named)

        return call

    hooks: dict[str, Any] = {name: wrapped(hook) for name in HOOKS if callable(hook := getattr(built, name, None))}
    if isinstance(built, Attack):
        return built._replace(**hooks, source=loaded.digest)
    curve = built.curve._replace(at=wrapped(built.curve.at)) if built.curve is not None else None
    return built._replace(**hooks, curve=curve)


@contextlib.contextmanager
def _within(loaded: _Loaded, attribute: str, here: str) -> Iterator[None]:
    """Run code of a user's file with its own imports; what it raises becomes a :class:`PluginError` with file and line."""
    try:
        with loaded.modules.active():
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(_where(error, loaded.modules) or here, f"{attribute} fails: {reason(error)}") from error
    late = loaded.modules.unexpected()
    if late:
        raise PluginError(
            here,
            f"{attribute} imports {late[0]} while it runs, in a way that its text does not tell, so that an edit of that file "
            f"would go unnoticed; import it at the top of {loaded.modules.path.name}",
        )


def _where(error: BaseException, modules: FileModules) -> str | None:
    """Return file and line of the user's own code that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    own = {str(modules.path), *map(str, modules.inspect().files)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(Path(frame.filename).resolve()) in own]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def place(function: Any) -> str | None:
    """Return file and line where a function begins; None for one without Python code."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else f"{code.co_filename}, line {code.co_firstlineno}"
