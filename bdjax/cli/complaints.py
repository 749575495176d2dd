"""How the command line says in one line what went wrong; ``BDJAX_DEBUG=1`` shows the traceback too."""

import contextlib
import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

DEBUG = "BDJAX_DEBUG"
_LONGEST = 400  # characters of another library's message
_LOUD = ("jax._src.xla_bridge", "jax._src.debugging", "jax._src.callback")  # these log tracebacks


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def complain(text: str, error: BaseException | None = None) -> None:
    """Print one line on stderr, after the traceback where that was asked for."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed or on a full disk: the exit code still says it
        if error is not None and debugging():
            traceback.print_exception(error)
        print("bdjax: error: " + " ".join(text.split()), file=sys.stderr, flush=True)


def of_system(error: OSError) -> str:
    """What the system says, with the file it is about."""
    return f"{error.strerror or error}" + (f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else "")


def unexpected(error: BaseException) -> str:
    """An error that nobody foresaw: its type, its first line, and the place - the user's own file where one took part."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = type(error).__name__ + (f": {lines[0][:_LONGEST]}" if lines else "")
    return f"{text}{_place(error)}; {DEBUG}=1 shows the traceback"


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    package = str(Path(__file__).resolve().parent)
    libraries = tuple({path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))})
    ours = [frame for frame in frames if frame.filename.startswith(package)]
    theirs = [f for f in frames if not f.filename.startswith((package, *libraries)) and "site-packages" not in f.filename]
    frame = next(iter([*theirs[::-1], *ours[::-1], *frames[::-1]]), None)
    return "" if frame is None else f" ({frame.filename}:{frame.lineno} in {frame.name})"


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Put the error into the line instead of a traceback below it."""
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {reason}", ()
            record.exc_info = record.exc_text = None
        return True


@contextlib.contextmanager
def one_line_each() -> Iterator[None]:
    """While a command runs, what JAX logs with a traceback is one line; as it was where tracebacks were asked for."""
    if debugging():
        yield
        return
    short, loggers = _OneLine(), [logging.getLogger(name) for name in _LOUD]
    for logger in loggers:
        logger.addFilter(short)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(short)
