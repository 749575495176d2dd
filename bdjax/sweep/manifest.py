"""What sweeps were asked of a folder: a file per grid with its cells and members, so that others see how far it is."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from bdjax.plugins.load import source_digest
from bdjax.store import location
from bdjax.store.atomic import replace_file
from bdjax.store.hashing import canonical, short_hash
from bdjax.store.leases import Leases
from bdjax.store.location import Location
from bdjax.sweep.cell import Point, member_hash, set_hash
from bdjax.sweep.pending import Work


class Asked(NamedTuple):
    """A cell that a sweep asks for."""

    cell: str
    dataset: str
    model: str
    attack: str
    defense: str  # "none": its training
    spc: int | None
    members: tuple[str, ...]  # their hashes
    earlier: tuple[str, ...] = ()  # hashes of this cell with earlier editions of its methods
    sources: tuple[tuple[str, str], ...] = ()  # the files of the user's own that it names, and their hashes


def write(out: Location, works: Sequence[Work], leases: Leases) -> None:
    """Note what a sweep asks for; the same sweep is noted once."""
    sets: dict[str, list[str]] = {}

    def named(points: Sequence[Point]) -> str:
        members = [member_hash(point) for point in points]
        name = set_hash(members)
        sets[name] = members
        return name

    cells: list[list[Any]] = []
    for work in works:
        train = work.branch.train
        facts = (work.dataset.spec.name, train.model, train.attack)
        cells.append([work.cell, *facts, "none", None, named(work.points)])
        cells += [[run.name, *facts, run.cell.defense, run.cell.spc, named(run.points)] for run in work.defenses]
    own = {name: source_digest(name) for _, _, model, attack, defense, *_ in cells for name in (model, attack, defense)}
    sources = {name: digest for name, digest in own.items() if digest is not None}
    earlier = {name: list(hashes) for work in works for name, hashes in work.earlier.items()}
    text = canonical(
        {"cells": cells, "sets": sets, **{key: value for key, value in (("earlier", earlier), ("sources", sources)) if value}}
    )
    name = short_hash(text)
    path = out / "sweeps" / f"{name}.json"
    with leases.lease(name) as granted:  # so that what a process leaves that dies here is cleaned up by the next
        if granted and not location.exists(path):
            replace_file(path, text.encode())


def read(out: Location) -> list[Asked]:
    """Every cell that any sweep asked of a folder, with all members asked of it, in the order they were asked for.

    A file that cannot be read is left out: it is about plans and holds no result.
    """
    found: dict[str, Asked] = {}
    for content in location.read_many(location.oldest_first(out / "sweeps", "*.json")):
        try:
            if isinstance(content, OSError):
                continue
            sweep = json.loads(content)
            for values in sweep["cells"]:
                earlier = tuple(sweep.get("earlier", {}).get(values[0], ()))
                hashes = sweep.get("sources", {})
                own = tuple((name, hashes[name]) for name in values[2:5] if name in hashes)
                asked = Asked._make([*values[:-1], tuple(sweep["sets"][values[-1]]), earlier, own])
                before = found.get(asked.cell)
                members = dict.fromkeys((*(before.members if before else ()), *asked.members))
                found[asked.cell] = asked._replace(members=tuple(members))
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())
