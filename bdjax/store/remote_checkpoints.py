"""Trained members in an object store: made on this machine's disk, then uploaded.

The files of a checkpoint lie below ``models/<cell>/<members>/state.<process>.<number>/``, a folder of their own, which the
manifest names. The manifest is uploaded last. So an upload that breaks off leaves a checkpoint that was never finished, and two
processes that for a moment both have the lease of a cell write side by side: the last manifest counts.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdjax.data.atomic import token
from bdjax.errors import UserError
from bdjax.store import checkpoint_manifest, objects
from bdjax.store.atomic import Corrupt
from bdjax.store.checkpoint_manifest import Manifest

if TYPE_CHECKING:
    from upath import UPath

_numbers = itertools.count()


def save(path: "UPath", state: Path, members: Sequence[str]) -> None:
    """Upload a checkpoint, replacing what lay there.

    Args:
      path: folder of the member set.
      state: folder of this machine with the checkpoint's files.
      members: their hashes.

    Raises:
      UserError: the store cannot be reached, or refuses.
    """
    before = checkpoint_manifest.read(path)
    name = f"state.{token()}.{next(_numbers)}"
    manifest = checkpoint_manifest.describe(members, state, name)
    try:
        objects.upload(state, path / name)
        objects.put(path / checkpoint_manifest.NAME, checkpoint_manifest.encode(manifest))
    except BaseException:
        with contextlib.suppress(UserError):  # the store may be out of reach
            objects.remove_folder(path / name)
        raise
    if before is not None:
        with contextlib.suppress(Corrupt):
            objects.remove_folder(path / checkpoint_manifest.decode(before).state)


def complete(base: "UPath") -> list["UPath"]:
    """Return the folders of the complete checkpoints below a folder, in the order of their names."""
    names = [name.partition("/") for name in objects.listing(base)]
    return [base / folder for folder, _, rest in names if rest == checkpoint_manifest.NAME and ".corrupt" not in folder]


@contextlib.contextmanager
def downloaded(path: "UPath") -> Iterator[tuple[list[str], Path]]:
    """Yield the members of a checkpoint and a temporary folder of this machine with its files, whose digests were compared.

    Raises:
      Corrupt: it is damaged, or gone.
      UserError: the store cannot be reached, or this machine's disk is full.
    """
    with contextlib.ExitStack() as stack:

        def download(manifest: Manifest) -> tuple[list[str], Path]:
            try:
                state = stack.enter_context(objects.downloaded(path / manifest.state, list(manifest.files)))
            except FileNotFoundError as error:
                raise Corrupt("a file is missing") from error
            checkpoint_manifest.compare_digests(manifest, state)
            return manifest.members, state

        yield checkpoint_manifest.check(path, download)


def clean(base: "UPath", dead: str) -> None:
    """Remove what a dead process uploaded below the folder of a cell without ever writing its manifest.

    Args:
      base: folder of the cell.
      dead: token of the process.
    """
    states = {tuple(name.split("/")[:2]) for name in objects.listing(base)}
    for folder, state in sorted(pair for pair in states if len(pair) == 2 and pair[1].startswith(f"state.{dead}.")):
        with contextlib.suppress(Corrupt):
            content = checkpoint_manifest.read(base / folder)
            if content is None or checkpoint_manifest.decode(content).state != state:
                objects.remove_folder(base / folder / state)
