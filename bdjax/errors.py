"""Errors for people: what was given, what is allowed, the nearest valid name."""

import difflib
import shlex
from collections.abc import Iterable

SHOWN = 24  # names listed in a message at most


class UserError(ValueError):
    """A mistake in what the user asked for; the command line prints its one line and no traceback."""


class PluginError(UserError):
    """A method of the user's own that cannot be used as it is; tells where and why.

    Args:
      where: file and line.
      why: what happened there, and the remedy.
    """

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


def command(*words: object) -> str:
    """A command line of bdjax as it can be pasted into a shell: ``command("report", out)``."""
    return quoted("bdjax", *words)


def quoted(*words: object) -> str:
    """Words of a command line, quoted as a shell needs them: ``quoted("--dataset", path)``."""
    return shlex.join(map(str, words))


def unknown(kind: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table.

    Args:
      kind: what the name should be ("defense", "flag of FT").
      given: what was written.
      allowed: the valid names.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = names if len(names) <= SHOWN else [*names[:SHOWN], f"… ({len(names)} in all)"]
    return UserError(f"unknown {kind} {given!r}; allowed: {', '.join(shown)}.{hint}")


def choose(kind: str, given: str, table: Iterable[str]) -> str:
    """Return ``given`` if the table holds it; raise :class:`UserError` with the nearest name otherwise."""
    names = list(table)
    if given not in names:
        raise unknown(kind, given, names)
    return given


def first_line(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
