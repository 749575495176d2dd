"""Editions: which results of a method a record holds, and whether they are still those of the method.

Every attack, defense and network carries an integer edition, which is raised when its results change. It is part of the
description of a cell and so of its hash; edition 1 is left out there, so that what never changed keeps its name. A record that
was made with another edition is shown as such, and the same run makes it again.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.plugins.load import is_path
from bdjax.store.hashing import canonical, short_hash
from bdjax.types import DataSpec

KINDS = ("model", "attack", "defense")  # parts of a description that have an edition
# Editions do not depend on the data set, which may be a user's own and not here: any method can be built for this one.
ANY_DATA = DataSpec("any", (32, 32, 3), 1_000_000, (0.5,) * 3, (0.25,) * 3, False, 4)


class Changed(NamedTuple):
    """A method whose edition is no longer the one a record was made with."""

    name: str
    made: int  # edition of the record
    now: int


def numbered(description: Mapping[str, Any], edition: int) -> dict[str, Any]:
    """The description of a method with its edition; the first one is left out."""
    return dict(description) if edition == 1 else {**description, "edition": edition}


def edition(description: Mapping[str, Any]) -> int:
    """The edition in the description of a method."""
    return int(description.get("edition", 1))


def earlier(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The hashes of the same cell with every earlier combination of the editions of its methods."""
    kinds = [kind for kind in KINDS if kind in description and edition(description[kind]) > 1]
    ranges = [range(1, edition(description[kind]) + 1) for kind in kinds]
    found = []
    for editions in list(itertools.product(*ranges))[:-1]:  # the last one is today's
        parts = {kind: _with(description[kind], number) for kind, number in zip(kinds, editions, strict=True)}
        found.append(short_hash({**description, **parts}))
    return tuple(found)


def current(description: Mapping[str, Any]) -> str:
    """The hash of the cell of a record with the editions of today."""
    parts = {
        kind: _with(description[kind], now)
        for kind in KINDS
        if kind in description and (now := _today(kind, canonical(description))) is not None
    }
    return short_hash({**description, **parts})


def _with(description: Mapping[str, Any], number: int) -> dict[str, Any]:
    return numbered({name: value for name, value in description.items() if name != "edition"}, number)


def changed(config: str | None) -> tuple[Changed, ...]:
    """The methods of a record whose edition is another one today.

    Args:
      config: the record's full static configuration as JSON; None, or one that names no methods, has no editions.
    """
    return _changed(config) if config else ()


@functools.lru_cache(maxsize=1 << 14)
def _changed(config: str) -> tuple[Changed, ...]:
    description = json.loads(config)
    found = []
    for kind in KINDS:
        now = _today(kind, config) if isinstance(description.get(kind), Mapping) else None
        if now is not None and now != edition(description[kind]):
            found.append(Changed(description[kind]["name"], edition(description[kind]), now))
    return tuple(found)


def said(found: Iterable[Changed]) -> str:
    """What changed, in words: "made with edition 1 of wanet, now 2"; empty where nothing did."""
    parts = [f"edition {one.made} of {one.name}, now {one.now}" for one in found]
    return "made with " + " and ".join(parts) if parts else ""


def same(row: Mapping[str, Any], what: str) -> None:
    """Raise :class:`UserError` where a record was made with another edition of a method than today's.

    Args:
      row: a record.
      what: what would not be that of the record, for the message.
    """
    found = said(changed(row["config"]))
    if found:
        version = json.loads(row["versions"] or "{}").get("bdjax")
        made = f"install bdjax {version}" if version not in (None, "source") else "use the version that made it"
        raise UserError(f"this record was {found}: {what} would not be that of the record; run its sweep again, or {made}")


def _today(kind: str, config: str) -> int | None:
    """Today's edition of a method of a description; None where it is not known: a user's own, or no longer there."""
    description = json.loads(config)
    name, own = description[kind].get("name"), description[kind].get("config")
    if not isinstance(name, str) or is_path(name):
        return None
    network = (description.get("model") or {}).get("name") if kind == "defense" else None
    return _built(
        kind, name, network, description.get("profile", "corrected"), canonical(own) if isinstance(own, Mapping) else ""
    )


@functools.lru_cache(maxsize=1 << 12)
def _built(kind: str, name: str, network: str | None, profile: str, own: str) -> int | None:
    from bdjax.attacks.table import ATTACKS
    from bdjax.defenses.table import DEFENSES
    from bdjax.models import MODELS, by_name

    if kind == "model":
        return MODELS[name](ANY_DATA).edition if name in MODELS else None
    table: Mapping[str, Any] = ATTACKS if kind == "attack" else DEFENSES
    if name not in table or (kind == "defense" and network not in MODELS):
        return None
    subject = ANY_DATA if kind == "attack" else by_name(str(network), ANY_DATA)
    for config in (json.loads(own) if own else None, None):  # fields may have gone since, and their values: then its defaults
        try:
            return int(table[name](subject, config, profile=profile).edition)
        except UserError:
            continue
    return None
