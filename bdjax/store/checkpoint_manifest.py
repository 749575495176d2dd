"""The manifest of a checkpoint: its members, and the size and sha256 of each of its files.

It lies as ``manifest.json`` in the folder of a checkpoint, is written last, and its presence means that the checkpoint is
complete. Whoever looks for checkpoints compares sizes; whoever loads one compares digests.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from bdjax.store import location, objects
from bdjax.store.atomic import Corrupt
from bdjax.store.hashing import canonical
from bdjax.store.location import Location

NAME = "manifest.json"
STATE = "state"  # folder of the files of a checkpoint on a disk
T = TypeVar("T")


class Manifest(NamedTuple):
    """What the manifest of a checkpoint says."""

    members: list[str]  # their hashes
    files: dict[str, str]  # path below the state: sha256
    sizes: dict[str, int]  # path below the state: bytes; empty where an earlier version wrote the manifest
    state: str  # folder of the files, beside the manifest


def describe(members: Sequence[str], state: Path, name: str = STATE) -> Manifest:
    """Return the manifest of a checkpoint whose files lie in a folder of this machine.

    Args:
      members: hashes of its members.
      state: the folder.
      name: of the folder that holds these files where the checkpoint is kept.
    """
    files = {path.relative_to(state).as_posix(): path for path in sorted(state.rglob("*")) if path.is_file()}
    sizes = {file: path.stat().st_size for file, path in files.items()}
    return Manifest(list(members), {file: _sha256(path) for file, path in files.items()}, sizes, name)


def encode(manifest: Manifest) -> bytes:
    """Return the content of the file of a manifest."""
    return canonical(manifest._asdict()).encode()


def decode(content: bytes) -> Manifest:
    """Return the manifest in the content of its file, of this version or an earlier one.

    Raises:
      Corrupt: it is no manifest.
    """
    try:
        text = json.loads(content)
        return Manifest(list(text["members"]), dict(text["files"]), dict(text.get("sizes", {})), text.get("state", STATE))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error


def read(path: Location) -> bytes | None:
    """Return the content of the manifest in the folder of a checkpoint; None where there is none.

    Raises:
      Corrupt: the disk does not give it.
      UserError: the store cannot be reached.
    """
    try:
        return location.read_bytes(path / NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(error) from error


def check(path: Location, function: Callable[[Manifest], T]) -> T:
    """Return ``function(manifest)`` of a checkpoint; it is called again if another process replaced the checkpoint meanwhile.

    Args:
      path: folder of the checkpoint.
      function: raises :class:`Corrupt` where files are not what the manifest says.

    Raises:
      Corrupt: the checkpoint is damaged, or gone.
    """
    content = read(path)
    while content is not None:
        try:
            return function(decode(content))
        except Corrupt:
            before, content = content, read(path)
            if content == before:
                raise
    raise Corrupt("its manifest is gone")


def members_of(path: Location) -> list[str]:
    """Return the members of a complete checkpoint, of which the manifest alone is read.

    Raises:
      Corrupt: files are missing or of another size.
    """

    def compare(manifest: Manifest) -> list[str]:
        sizes = _sizes(path / manifest.state, manifest.files)
        for name in manifest.files:
            if name not in sizes:
                raise Corrupt(f"{name} is missing")
            if sizes[name] != manifest.sizes.get(name, sizes[name]):
                raise Corrupt(f"{name} is not as long as it was")
        return manifest.members

    return check(path, compare)


def _sizes(state: Location, names: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes in bytes of those of these files that exist."""
    if not isinstance(state, Path):
        return {name: int(facts["size"]) for name, facts in objects.listing(state).items()}
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (state / name).stat().st_size
    return found


def compare_digests(manifest: Manifest, state: Path) -> None:
    """Read every file of a checkpoint on this machine and compare its digest.

    Raises:
      Corrupt: a file is missing or was changed.
    """
    for name, digest in manifest.files.items():
        try:
            found = _sha256(state / name)
        except FileNotFoundError as error:
            raise Corrupt(f"{name} is missing") from error
        except OSError as error:
            raise Corrupt(f"{name} cannot be read: {error.strerror or error}") from error
        if found != digest:
            raise Corrupt(f"{name} does not match its checksum")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(error: Exception) -> Corrupt:
    return Corrupt(f"its manifest cannot be read: {type(error).__name__}")
