"""Trained members in an object store: a checkpoint is made on this machine's disk, uploaded, and there once its manifest is.

The files of a checkpoint lie below ``models/<cell>/<members>/state.<process>.<number>/``, a folder of their own; the manifest,
uploaded last, names it, with digests and sizes. So an upload that breaks off leaves a checkpoint that was never finished, and
two processes that for a moment both hold a cell write side by side: the last manifest counts. Looking for checkpoints compares
names and sizes; digests are compared by who downloads one.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bdjax.errors import UserError
from bdjax.store import objects
from bdjax.store.atomic import Corrupt, set_aside, token
from bdjax.store.hashing import canonical

if TYPE_CHECKING:
    from upath import UPath

MANIFEST = "manifest.json"
_numbers = itertools.count()
T = TypeVar("T")


class Manifest(NamedTuple):
    """What the manifest of a checkpoint says."""

    members: list[str]  # their hashes
    files: dict[str, str]  # path below the state: sha256
    sizes: dict[str, int]  # in bytes; none of one that was copied here from a disk
    state: str  # folder of the files


def save(path: "UPath", state: Path, members: tuple[str, ...], digests: Mapping[str, str]) -> None:
    """Upload a checkpoint, replacing what lay there.

    Args:
      path: folder of the member set.
      state: folder of this machine with the checkpoint's files.
      members: their hashes.
      digests: sha256 of every file below ``state``.

    Raises:
      UserError: the store cannot be reached, or refuses.
    """
    before = _manifest(path)
    name = f"state.{token()}.{next(_numbers)}"
    sizes = {each: (state / each).stat().st_size for each in digests}
    told = {"members": members, "files": digests, "sizes": sizes, "state": name}
    try:
        objects.upload(state, path / name)
        objects.put(path / MANIFEST, canonical(told).encode())
    except BaseException:
        with contextlib.suppress(UserError):  # the store may be out of reach
            objects.remove_folder(path / name)
        raise
    if before is not None:
        with contextlib.suppress(Corrupt):
            objects.remove_folder(path / _read(before).state)


def found(base: "UPath") -> list["UPath"]:
    """The finished checkpoints below a folder, in the order of their names."""
    names = [name.partition("/") for name in objects.listing(base)]
    return [base / folder for folder, _, rest in names if rest == MANIFEST and ".corrupt" not in folder]


def members_of(path: "UPath") -> list[str]:
    """The members of a finished checkpoint.

    Raises:
      Corrupt: files are missing or of another size.
    """

    def check(manifest: Manifest) -> list[str]:
        there = objects.listing(path / manifest.state)
        for name in manifest.files:
            if name not in there:
                raise Corrupt(f"{name} is missing")
            if int(there[name]["size"]) != manifest.sizes.get(name, int(there[name]["size"])):
                raise Corrupt(f"{name} is not as long as it was")
        return manifest.members

    return _steady(path, check)


@contextlib.contextmanager
def downloaded(path: "UPath") -> Iterator[tuple[list[str], Path]]:
    """The members of a checkpoint, and its state in a temporary folder of this machine.

    Raises:
      UserError: it is damaged, and was set aside; or the store cannot be reached, or this machine's disk is full.
    """
    with contextlib.ExitStack() as stack:

        def check(manifest: Manifest) -> tuple[list[str], Path]:
            try:
                state = stack.enter_context(objects.downloaded(path / manifest.state, list(manifest.files)))
            except FileNotFoundError as error:
                raise Corrupt("a file is missing") from error
            for name, digest in manifest.files.items():
                if hashlib.sha256((state / name).read_bytes()).hexdigest() != digest:
                    raise Corrupt(f"{name} does not match its checksum")
            return manifest.members, state

        try:
            there = _steady(path, check)
        except Corrupt as reason:
            set_aside(path, str(reason))
            raise UserError(f"the trained members in {path} are damaged ({reason}); the same run makes them again") from reason
        yield there


def clean(base: "UPath", dead: str) -> None:
    """Remove what a dead process uploaded below the folder of a cell without ever writing its manifest."""
    states = {tuple(name.split("/")[:2]) for name in objects.listing(base)}
    for folder, state in sorted(pair for pair in states if len(pair) == 2 and pair[1].startswith(f"state.{dead}.")):
        with contextlib.suppress(Corrupt):
            content = _manifest(base / folder)
            if content is None or _read(content).state != state:
                objects.remove_folder(base / folder / state)


def _manifest(path: "UPath") -> bytes | None:
    try:
        return objects.get(path / MANIFEST)
    except FileNotFoundError:
        return None


def _read(content: bytes) -> Manifest:
    try:
        told = json.loads(content)
        # A checkpoint that was copied here from a disk lies in the one folder it has there.
        return Manifest(list(told["members"]), dict(told["files"]), dict(told.get("sizes", {})), told.get("state", "state"))
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"its manifest cannot be read: {type(error).__name__}") from error


def _steady(path: "UPath", check: Callable[[Manifest], T]) -> T:
    """What a check of a checkpoint gives; it is repeated where another process replaced the checkpoint meanwhile."""
    content = _manifest(path)
    while content is not None:
        try:
            return check(_read(content))
        except Corrupt:
            before, content = content, _manifest(path)
            if content == before:
                raise
    raise Corrupt("its manifest is gone")
