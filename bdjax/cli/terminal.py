"""Text for terminals, files and pipes of any encoding, and for output that is closed or full."""

import codecs
import contextlib
import functools
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

_ERRORS = {"stdout": "bdjax-plain", "stderr": "bdjax-escaped"}
_PLAIN = {"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "≤": "<=", "≥": ">=", "∞": "inf", "±": "+-", "→": "->", "·": "*"}
_PLAIN |= {"“": '"', "”": '"', "‘": "'", "’": "'"}
_PLAIN |= dict.fromkeys("─━═╌┄╴╶", "-") | dict.fromkeys("│┃║", "|") | dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+")


def _instead(error: UnicodeError, *, escaped: bool = False) -> tuple[bytes, int]:
    """The nearest plain characters; bytes of a path that are no text stay these bytes, or are escaped in a message."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = b""
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":
            byte = ord(character) - 0xDC00
            found += f"\\x{byte:02x}".encode() if escaped else bytes([byte])
        elif character in _PLAIN:
            found += _PLAIN[character].encode()
        else:
            found += unicodedata.normalize("NFKD", character).encode("ascii", "ignore") or b"?"
    return found, error.end


codecs.register_error(_ERRORS["stdout"], _instead)
codecs.register_error(_ERRORS["stderr"], functools.partial(_instead, escaped=True))


@contextlib.contextmanager
def printable() -> Iterator[None]:
    """While a command runs, whatever it prints can be written: what the encoding lacks is replaced by what is nearest."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process began with it closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open as the stream it replaces would
    changed: list[tuple[Any, str]] = []
    for name, errors in _ERRORS.items():
        stream: Any = getattr(sys, name)
        if callable(getattr(stream, "reconfigure", None)):
            changed.append((stream, stream.errors or "strict"))
            stream.reconfigure(errors=errors)
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile, or full: noticed by `flushed`
                stream.reconfigure(errors=errors)


def flushed() -> OSError | None:
    """Write out what was printed; gives why that failed, and then lets go of stdout so that Python does not try again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
