"""Trained members on disk: an Orbax checkpoint per training cell and member set.

``out/models/<cell>/<members>/`` holds ``state/`` (stacked variables and trigger leaves) and ``manifest.json``, written last, with
the sha256 of every file. The folder appears under its name when all of it is there. In an object store the manifest, uploaded
last, stands for that: see :mod:`bdjax.store.remote_checkpoints`.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.population import hosts
from bdjax.store import remote_checkpoints
from bdjax.store.atomic import Corrupt, set_aside, sync_folder, temporary_of, writing
from bdjax.store.hashing import canonical
from bdjax.store.location import Location


class Stored(NamedTuple):
    """Trained members on the host, stacked on axis 0."""

    members: tuple[str, ...]  # their hashes
    variables: Any
    trigger: tuple[np.ndarray, ...]  # leaves, in the order of the attack's trigger


def folder(out: Location, cell: str, members: str) -> Location:
    """Where the trained members of a cell and member set lie."""
    return out / "models" / cell / members


def save(out: Location, cell: str, name: str, stored: Stored) -> Location:
    """Store trained members, replacing what lay there.

    Args:
      out: folder of the sweep.
      cell: hash of the training cell.
      name: hash of the member set.
      stored: the members.

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """

    path = folder(out, cell, name)
    if not hosts.is_leader():  # of several processes that run the same, the first one writes
        return path
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="bdjax-") as made, writing(Path(made)):
            remote_checkpoints.save(path, Path(made) / "state", stored.members, _write(Path(made), stored))
        return path
    path = path.absolute()
    temporary = temporary_of(path)
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            manifest = {"members": stored.members, "files": _write(temporary, stored)}
            with open(temporary / "manifest.json", "w") as file:
                file.write(canonical(manifest))
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)
    return path


def _write(into: Path, stored: Stored) -> dict[str, str]:
    """Write ``state/`` into a folder of this machine; gives the digest of every file below it."""
    state = {"variables": stored.variables, "trigger": {str(i): leaf for i, leaf in enumerate(stored.trigger)}}
    state = jax.tree.map(np.asarray, state)
    _reserve(into / "room", sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    with _no_traces(), _checkpointer() as checkpointer:
        checkpointer.save(into / "state", state)
    return _digests(into / "state")


def _checkpointer() -> Any:
    """Orbax's checkpointer for this process alone: by itself it would wait for every process of the run."""
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


def _digests(state: Path) -> dict[str, str]:
    files = sorted(p for p in state.rglob("*") if p.is_file())
    return {str(p.relative_to(state)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def find(out: Location, cell: str) -> dict[str, tuple[str, int]]:
    """Where the trained members of a cell lie: {member hash: (member set, index)}; corrupt checkpoints are set aside."""
    found: dict[str, tuple[str, int]] = {}
    for path in _checkpoints(out / "models" / cell):
        try:
            members = _verify(path) if isinstance(path, Path) else remote_checkpoints.members_of(path)
            found.update({member: (path.name, i) for i, member in enumerate(members)})
        except Corrupt as reason:
            set_aside(path, str(reason))
    return found


def _checkpoints(base: Location) -> Sequence[Location]:
    if not isinstance(base, Path):
        return remote_checkpoints.found(base)
    return sorted(p for p in base.iterdir() if _is_checkpoint(p)) if base.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and ".corrupt" not in path.name


def _verify(path: Path) -> list[str]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        members, files = list(manifest["members"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"its manifest cannot be read: {type(error).__name__}") from error
    actual = _digests(path / "state")
    for name, digest in files.items():
        if name not in actual:
            raise Corrupt(f"{name} is missing")
        if actual[name] != digest:
            raise Corrupt(f"{name} does not match its checksum")
    return members


@contextlib.contextmanager
def _at_hand(path: Location) -> Iterator[tuple[list[str], Path]]:
    """The members of a checkpoint and its state on this machine."""
    if isinstance(path, Path):
        yield _verify(path.absolute()), path.absolute() / "state"
    else:
        with remote_checkpoints.downloaded(path) as there:
            yield there


def load(out: Location, cell: str, places: Sequence[tuple[str, int]]) -> Stored:
    """Trained members by their place, as :func:`find` told it, in the order asked for.

    Raises:
      Corrupt: a checkpoint changed since it was found.
      UserError: one in an object store is damaged, and was set aside; or the store cannot be reached.
    """

    sets: dict[str, Stored] = {}
    for name, _ in places:
        if name not in sets:
            with _at_hand(folder(out, cell, name)) as (members, files), _checkpointer() as checkpointer:
                state = checkpointer.restore(files)
            leaves = state["trigger"] or {}
            sets[name] = Stored(tuple(members), state["variables"], tuple(leaves[str(i)] for i in range(len(leaves))))
    if not places:
        return Stored((), {}, ())
    parts = [(sets[name], index) for name, index in places]

    def stack(*leaves: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf)[index] for leaf, (_, index) in zip(leaves, parts, strict=True)])

    variables, trigger = jax.tree.map(stack, *[(part.variables, part.trigger) for part, _ in parts])
    return Stored(tuple(part.members[index] for part, index in parts), variables, trigger)
