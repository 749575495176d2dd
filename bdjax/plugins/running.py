"""Code of a user's own file while it runs: its imports, and the file and line that an error comes from."""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.errors import PluginError, UserError
from bdjax.plugins.explain import reason
from bdjax.plugins.isolation import FileModules


class Loaded(NamedTuple):
    """A file that was imported."""

    module: Any
    modules: FileModules
    digest: str
    networks: dict[Any, Any]  # what its factories gave, by what they gave: the same network is the same object


@contextlib.contextmanager
def within(loaded: Loaded, attribute: str, here: str) -> Iterator[None]:
    """Run code of a user's file with its own imports; what it raises becomes a :class:`PluginError` with file and line.

    Args:
      loaded: the file.
      attribute: the factory that the code belongs to.
      here: file and line of what runs, for errors that come from no line of the file.
    """
    try:
        with loaded.modules.active():
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(where(error, loaded.modules) or here, f"{attribute} fails: {reason(error)}") from error
    late = loaded.modules.unexpected()
    if late:
        raise PluginError(
            here,
            f"{attribute} imports {late[0]} while it runs, in a way that its text does not tell, so that an edit of that file "
            f"would go unnoticed; import it at the top of {loaded.modules.path.name}",
        )


def wrapped(function: Callable[..., Any], loaded: Loaded, attribute: str, here: str | None = None) -> Callable[..., Any]:
    """Return a function of a user's file that finds the imports of its file, see :func:`within`."""
    place_of = here or place(function) or str(loaded.modules.path)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with within(loaded, attribute, place_of):
            return function(*arguments, **named)

    return call


def where(error: BaseException, modules: FileModules) -> str | None:
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
