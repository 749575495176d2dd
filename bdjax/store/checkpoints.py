"""Trained members on disk: an Orbax checkpoint per training cell and member set.

``out/models/<cell>/<members>/`` holds ``state/`` (stacked variables and trigger leaves) and ``manifest.json``
(:mod:`bdjax.store.checkpoint_manifest`). The folder appears under its name when all of it is there. In an object store the
manifest, uploaded last, stands for that: see :mod:`bdjax.store.remote_checkpoints`.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.data import atomic
from bdjax.population import hosts
from bdjax.population.stacks import stack, take
from bdjax.store import checkpoint_manifest, remote_checkpoints
from bdjax.store.atomic import Corrupt, quarantine, writing
from bdjax.store.checkpoint_manifest import Manifest
from bdjax.store.location import Location


class Stored(NamedTuple):
    """Trained members on the host, stacked on axis 0."""

    members: tuple[str, ...]  # their hashes
    variables: Any
    trigger: tuple[np.ndarray, ...]  # leaves, in the order of the attack's trigger


def folder(out: Location, cell: str, members: str) -> Location:
    """Return where the trained members of a cell and member set lie."""
    return out / "models" / cell / members


def save(out: Location, cell: str, name: str, stored: Stored) -> Location:
    """Store trained members, replacing what lay there; of several processes that run the same program, the first one writes.

    Args:
      out: folder of the sweep.
      cell: hash of the training cell.
      name: hash of the member set.
      stored: the members.

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    path = folder(out, cell, name)
    if hosts.is_leader():
        save_tree(path, stored.members, {"variables": stored.variables, "trigger": dict(enumerated(stored.trigger))})
    return path


def enumerated(leaves: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield leaves with their numbers as names, as trees on disk have them."""
    return ((str(i), leaf) for i, leaf in enumerate(leaves))


def save_tree(path: Location, members: Sequence[str], tree: Any) -> None:
    """Store a tree of host arrays in a folder, replacing what lay there.

    Args:
      path: the folder.
      members: whose arrays they are.
      tree: nested dictionaries of arrays.

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="bdjax-") as made, writing(Path(made)):
            remote_checkpoints.save(path, _write(Path(made), tree), members)
        return
    path = path.absolute()
    with writing(path), atomic.replacing(path, sync_files=False) as temporary:
        temporary.mkdir()
        manifest = checkpoint_manifest.describe(members, _write(temporary, tree))
        atomic.replace_file(temporary / checkpoint_manifest.NAME, checkpoint_manifest.encode(manifest))


def _write(into: Path, tree: Any) -> Path:
    """Write the files of a checkpoint into a folder of this machine; return the folder below it that holds them."""
    state = jax.tree.map(np.asarray, tree)
    _reserve(into / "room", sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    with _no_traces(), _checkpointer() as checkpointer:
        checkpointer.save(into / checkpoint_manifest.STATE, state)
    return into / checkpoint_manifest.STATE


def _checkpointer() -> Any:
    """Return Orbax's checkpointer for this process alone: by default it would wait for every process of the run."""
    import orbax.checkpoint as ocp

    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _reserve(path: Path, size: int) -> None:
    """Fail where ``size`` bytes do not fit: the checkpoint library's threads would go on and print their own traces."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
    path.unlink()


@contextlib.contextmanager
def _no_traces() -> Iterator[None]:
    """Hold back the traces that the checkpoint library logs from its threads: it raises the same error to the caller."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def find(out: Location, cell: str) -> dict[str, tuple[str, int]]:
    """Return where the trained members of a cell lie: {member hash: (member set, index)}.

    Of each checkpoint the manifest is read and the sizes of its files are compared, no more; one that does not agree is
    quarantined. A file of the right size that was changed is found by :func:`load`.
    """
    found: dict[str, tuple[str, int]] = {}
    for path in complete(out / "models" / cell):
        try:
            members = checkpoint_manifest.members_of(path)
            found.update({member: (path.name, i) for i, member in enumerate(members)})
        except Corrupt as reason:
            quarantine(path, str(reason))
    return found


def complete(base: Location) -> Sequence[Location]:
    """Return the folders of the complete checkpoints below a folder, in the order of their names."""
    if not isinstance(base, Path):
        return remote_checkpoints.complete(base)
    return sorted(p for p in base.iterdir() if _is_checkpoint(p)) if base.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and ".corrupt" not in path.name


def load(out: Location, cell: str, places: Sequence[tuple[str, int]]) -> Stored:
    """Read trained members by their places, as :func:`find` gives them, in the order asked for.

    The digest of every file is compared. A checkpoint that is damaged is quarantined, so that the same run makes it again.

    Raises:
      Corrupt: a checkpoint is damaged or gone.
      UserError: the store cannot be reached.
    """
    sets: dict[str, Stored] = {}
    damage: Corrupt | None = None
    for name in dict.fromkeys(name for name, _ in places):
        path = folder(out, cell, name)
        try:
            sets[name] = _restore(path)
        except Corrupt as reason:
            quarantine(path, str(reason))
            damage = Corrupt(f"the trained members in {path} are damaged ({reason}); the same run makes them again")
    if damage is not None:
        raise damage
    if not places:
        return Stored((), {}, ())
    members = tuple(sets[name].members[index] for name, index in places)
    each = [take((sets[name].variables, sets[name].trigger), index) for name, index in places]
    return Stored(members, *stack(each))


def _restore(path: Location) -> Stored:
    """Read one checkpoint; raises Corrupt where it is damaged or gone."""
    members, state = load_tree(path)
    return Stored(members, state["variables"], in_order(state["trigger"]))


def load_tree(path: Location) -> tuple[tuple[str, ...], Any]:
    """Return the members and the tree of what :func:`save_tree` stored in a folder.

    Raises:
      Corrupt: it is damaged or gone.
      UserError: the store cannot be reached.
    """
    with _local_copy(path) as (members, files), _checkpointer() as checkpointer:
        return tuple(members), jax.tree.map(np.asarray, checkpointer.restore(files))


def in_order(leaves: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Return the leaves of :func:`enumerated` in their order; an empty tree is None on disk."""
    return tuple((leaves or {})[str(i)] for i in range(len(leaves or {})))


@contextlib.contextmanager
def _local_copy(path: Location) -> Iterator[tuple[list[str], Path]]:
    """Yield the members of a checkpoint and a folder of this machine with its files, whose digests were compared."""
    if not isinstance(path, Path):
        with remote_checkpoints.downloaded(path) as copy:
            yield copy
        return
    path = path.absolute()

    def compare(manifest: Manifest) -> tuple[list[str], Path]:
        state = path / manifest.state
        checkpoint_manifest.compare_digests(manifest, state)
        return manifest.members, state

    yield checkpoint_manifest.check(path, compare)
