"""Errors for people: what was given, what is allowed, the nearest valid name."""

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

SHOWN = 24  # names listed in a message at most
SYNONYMS = {  # what others call a thing, and what it is called here
    "learning_rate": "lr",
    "batch_size": "batch",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "wd": "weight_decay",
    "scheduler": "schedule",
    "seed": "seeds",
    "poison_rate": "poison_ratio",
    "poisoning_rate": "poison_ratio",
    "samples_per_class": "spc",
    "network": "model",
}


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
    near = nearest(str(given), names)
    hint = f" Did you mean {near!r}?" if near else ""
    shown = names if len(names) <= SHOWN else [*names[:SHOWN], f"… ({len(names)} in all)"]
    return UserError(f"unknown {kind} {given!r}; allowed: {', '.join(shown)}.{hint}")


def nearest(given: str, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The name that was probably meant: another word for it, or the one that is spelled most like it; None where none is near."""
    known = list(names)
    synonym = SYNONYMS.get(given.lower().replace("-", "_"))
    near = [synonym] if synonym in known else difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def folder_like(path: str) -> str | None:
    """The folder beside a path that is none whose name is spelled most like it; None where none is near."""
    place = Path(path).expanduser()
    try:
        beside = [entry.name for entry in place.parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return None
    near = nearest(place.name, beside, cutoff=0.75)
    return None if near is None else str(place.parent / near)


def choose(kind: str, given: str, table: Iterable[str]) -> str:
    """Return ``given`` if the table holds it; raise :class:`UserError` with the nearest name otherwise."""
    names = list(table)
    if given not in names:
        raise unknown(kind, given, names)
    return given


def first_line(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
