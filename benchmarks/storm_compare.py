"""Whether a folder that went through the storm equals one that did not, record for record and bit for bit."""

import itertools
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bdjax.store import arrays, checkpoints, location, objects, records
from bdjax.store.atomic import Corrupt
from bdjax.store.hashing import array_digest
from bdjax.store.location import Location
from bdjax.store.rows import COLUMNS, VOLATILE

COMPARED = tuple(name for name in COLUMNS if name not in (*VOLATILE, "git_commit"))  # somebody may commit meanwhile


def differences(out: Location, sound: Path, attacks: Container[str], damaged: Container[str] = ()) -> tuple[list[str], int]:
    """Return a line for everything in which a folder differs from one that nobody disturbed, or that was left over in it.

    Args:
      out: the folder.
      sound: the one that nobody disturbed.
      attacks: of it that were asked for in ``out``.
      damaged: training cells whose networks the storm damaged.

    Returns:
      The lines, and the number of networks that are not there, or corrupt, because they were damaged when every defense had read
      them already: nobody needs them any more, so nobody makes them again.
    """
    unread = 0
    ours, theirs = records.read_rows(out), [row for row in records.read_rows(sound) if row["attack"] in attacks]
    lines = list(_of_rows(ours, theirs))
    for cell in sorted({row["cell"] for row in theirs if row["defense"] == "none"}):
        mine, sound_one = networks(out, cell), networks(sound, cell)
        for name in sound_one:
            if mine.get(name) is None and cell in damaged:
                unread += 1
            elif mine.get(name) != sound_one[name]:
                lines.append(f"network {name} of cell {cell} differs")
    for row in theirs:
        kept = (arrays.read(folder, row) for folder in (out, sound))
        digests = [{name: array_digest([value]) for name, value in found.items()} for found in kept]
        lines += [f"the arrays of {row['cell']} {row['member']} differ"] if digests[0] != digests[1] else []
    return [*lines, *(f"left over: {name}" for name in leftovers(out))], unread


def _of_rows(ours: list[Any], theirs: list[Any]) -> Any:
    for mine, sound in itertools.zip_longest(ours, theirs):
        if mine is None or sound is None:
            yield f"{len(ours)} records instead of {len(theirs)}"
            return
        for name in COMPARED:
            if mine[name] != sound[name]:
                yield f"record {sound['cell']} {sound['member']}: {name} is {mine[name]!r} instead of {sound[name]!r}"


def networks(out: Location, cell: str) -> dict[str, str]:
    """Return the digest of every sound trained network of a cell by its member: of its variables and its trigger."""
    found = {}
    for member, place in checkpoints.find(out, cell).items():
        try:
            stored = checkpoints.load(out, cell, [place])
        except Corrupt:
            continue
        found[member] = array_digest([np.asarray(leaf) for leaf in jax.tree.leaves((stored.variables, stored.trigger))])
    return found


def leftovers(out: Location) -> list[str]:
    """Return what no finished folder holds: checkpoints of running cells, leases, temporary files, uploads without a manifest."""
    if isinstance(out, Path):
        held = [path for kind in ("running", "claims") for path in (out / kind).rglob("*") if path.is_file()]
        return sorted({str(path.relative_to(out)) for path in (*held, *out.rglob(".*.tmp"))})
    there = objects.listing(out)
    held_names = [name for name in there if name.startswith(("running/", "claims/")) or ".corrupt" in name.split("/")[0]]
    return sorted([*held_names, *_orphans(out, list(there))])


def _orphans(out: Location, names: list[str]) -> list[str]:
    """Uploaded states of networks that no manifest names."""
    found = []
    for name in names:
        parts = name.split("/")
        if parts[0] == "models" and len(parts) > 4 and ".corrupt" not in name:
            try:
                state = json.loads(location.read_bytes(out / "/".join(parts[:3]) / "manifest.json"))["state"]
            except FileNotFoundError:
                state = None
            found += [name] if parts[3] != state else []
    return found
