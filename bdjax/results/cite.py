"""BibTeX of the papers behind a folder of results: of the data sets, networks, attacks and defenses that it holds."""

from collections.abc import Iterable, Mapping
from typing import Any

from bdjax.errors import UserError
from bdjax.plugins.load import factory
from bdjax.results.papers import PAPERS, SURVEY, entries
from bdjax.store import location, records
from bdjax.store.location import Location
from bdjax.sweep.listing import paper


def cite(rows: Iterable[Mapping[str, Any]]) -> str:
    """The entry of every paper behind these records, each once, by key, with what it was used for as its note.

    Comments at the end name the users' own methods and data sets, with the ``Source:`` of the docstrings of the methods.
    """
    used: dict[str, dict[str, None]] = {}
    without = []
    for kind, name in dict.fromkeys((kind, row[kind]) for row in rows for kind in PAPERS):
        if name in PAPERS[kind]:
            for key in PAPERS[kind][name]:
                used.setdefault(key, {})[name] = None
        else:
            without.append(f"% {kind} {name}: {_own_source(kind, name) or 'names no source'}")
    used[SURVEY] = {"settings and evaluation": None}
    cited = [_with_note(entries()[key], names) for key, names in sorted(used.items())]
    return "\n\n".join([*cited, *(["\n".join(without)] if without else [])])


def cite_folder(out: "str | Location") -> str:
    """BibTeX for a folder of results.

    Raises:
      UserError: it holds no records.
    """
    rows = records.read_rows(location.locate(out))
    if not rows:
        raise UserError(f"{out} holds no records; write some with: bdjax run --out {out}")
    return cite(rows)


def _with_note(entry: str, used_for: Iterable[str]) -> str:
    note = "used here for " + ", ".join(used_for).replace("_", r"\_")
    return f"{entry.removesuffix('}')}  note = {{{note}}},\n}}"


def _own_source(kind: str, name: str) -> str:
    """The ``Source:`` of a user's own attack or defense, or why it cannot be read; nothing of a data set."""
    if kind not in ("attack", "defense"):
        return ""
    try:
        return paper(factory(kind, name, {}))
    except UserError as error:  # the file is not here
        return str(error)
