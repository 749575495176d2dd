"""Reading and writing in an object store, which has neither folders nor renames.

Uploads are atomic: an object appears when its upload is complete, so nothing needs a temporary name. An object that is not there
raises :class:`FileNotFoundError`, as on a disk. Whatever else goes wrong on the way to the store raises :class:`UserError`
with one line, so that a broken connection is never taken for a damaged record. No listing is cached: other processes write too.
"""

import contextlib
import inspect
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdjax.errors import UserError, first_line

if TYPE_CHECKING:
    from upath import UPath

BATCH = 256  # objects that are fetched at once, and are in memory together


@contextlib.contextmanager
def reaching(path: "UPath") -> Iterator[None]:
    """Turn what goes wrong between here and a store into one clear line, except that an object is there or is not."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, UserError):
        raise
    except Exception as error:  # each store's client has exceptions of its own
        raise UserError(f"cannot reach {path}: {first_line(error)}; the same command goes on where this one stopped") from error


def get(path: "UPath") -> bytes:
    """Return the content of an object.

    Raises:
      FileNotFoundError: there is none.
      UserError: the store cannot be reached, or refuses.
    """
    with reaching(path):
        return bytes(path.fs.cat_file(path.path))


def get_many(paths: Sequence["UPath"]) -> Iterator[bytes | OSError]:
    """Yield the contents of objects of one store, in order, fetched several at once; an error for one that is not there."""
    for start in range(0, len(paths), BATCH):
        some = list(paths[start : start + BATCH])
        with reaching(some[0]):
            contents = some[0].fs.cat_ranges([path.path for path in some], None, None, on_error="return")
        for path, content in zip(some, contents, strict=True):
            with reaching(path):
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
            yield content if isinstance(content, FileNotFoundError) else bytes(content)


def put(path: "UPath", data: bytes) -> None:
    """Write an object, replacing what was there.

    Raises:
      UserError: the store cannot be reached or refuses, or there is no such bucket.
    """
    with reaching(path), missing_bucket(path):
        path.fs.pipe_file(path.path, data)


@contextlib.contextmanager
def missing_bucket(path: "UPath") -> Iterator[None]:
    """Turn the FileNotFoundError of a write into a UserError: what is missing is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}") from error


def create(path: "UPath", data: bytes, exclusive: bool = True) -> bool:
    """Write an object where there is none; return whether this call wrote it.

    Args:
      path: of the object.
      data: content that nobody else would write, by which the writer knows its own object again.
      exclusive: what :func:`creates_exclusively` says of the store; where it is False, True may be returned to two processes.

    Raises:
      UserError: as of :func:`put`.
    """
    with reaching(path), missing_bucket(path):
        if not exclusive:
            if exists(path):
                return False
            path.fs.pipe_file(path.path, data)
            return True
        try:
            path.fs.pipe_file(path.path, data, mode="create")
        except FileExistsError:  # also where the answer to our own request was lost and it was sent again
            with contextlib.suppress(FileNotFoundError):
                return get(path) == data
            return False
        except OSError as error:
            if "ConditionalRequestConflict" in f"{error} {error.__cause__}":  # S3, while somebody else removes the object
                return False
            raise
    return True


def creates_exclusively(folder: "UPath") -> bool:
    """Return whether only one of several processes that create the same object in this store is answered that it did.

    Raises:
      UserError: as of :func:`put`.
    """
    from fsspec.spec import AbstractFileSystem

    fs = folder.fs
    method = type(fs)._pipe_file if fs.async_impl else type(fs).pipe_file
    if method is AbstractFileSystem.pipe_file or "mode" not in inspect.signature(method).parameters:
        return False  # it would look first and write then, or not look at all
    probe = folder / f".probe.{uuid.uuid4().hex[:12]}"
    try:
        return create(probe, b"first") and not create(probe, b"second")  # some that speak S3 do not know the condition
    finally:
        remove(probe)


def exists(path: "UPath") -> bool:
    """Return whether there is such an object, or objects below such a folder."""
    with reaching(path):
        path.fs.invalidate_cache()
        try:  # a store's own answer to this question may be "no" where it only could not be asked
            path.fs.info(path.path)
        except FileNotFoundError:
            return False
    return True


def listing(folder: "UPath") -> dict[str, dict[str, Any]]:
    """Return the objects below a folder by their path from it, with facts of each: its "size" in bytes, at least."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    fs = folder.fs
    plain = type(fs)._find is AsyncFileSystem._find if fs.async_impl else type(fs).find is AbstractFileSystem.find
    with reaching(folder):
        fs.invalidate_cache()
        try:  # a walk by itself takes what it cannot list for empty
            found = fs.find(folder.path, detail=True, **({"on_error": "raise"} if plain else {}))
        except FileNotFoundError:
            return {}
    start = folder.path.rstrip("/") + "/"
    return {name[len(start) :]: facts for name, facts in sorted(found.items()) if name.startswith(start) and name != start}


def modified(path: "UPath") -> float:
    """Return when an object was written, in seconds since 1970 by the store's clock; 0 where that is not known, or it is gone."""
    with reaching(path):
        try:
            return float(path.fs.modified(path.path).timestamp())
        except (NotImplementedError, FileNotFoundError):
            return 0.0


def remove(path: "UPath") -> None:
    """Remove an object, if it is there."""
    with reaching(path), contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def remove_folder(folder: "UPath") -> None:
    """Remove every object below a folder; the outermost first, so that a checkpoint loses its manifest before anything else."""
    for name in sorted(listing(folder), key=lambda name: name.count("/")):
        remove(folder / name)


def move(path: "UPath", target: "UPath") -> None:
    """Move an object, or all below a folder.

    Raises:
      FileNotFoundError: there is neither.
      UserError: as of :func:`put`.
    """
    names = sorted(listing(path), key=lambda name: name.count("/"))
    pairs = [(path / name, target / name) for name in names] or [(path, target)]
    with reaching(path):
        for source, copy in pairs:
            path.fs.cp_file(source.path, copy.path)
    for source, _ in pairs:
        remove(source)


def upload(source: Path, target: "UPath") -> None:
    """Write every file below a folder of this machine as an object below ``target``."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    copies = [target / path.relative_to(source).as_posix() for path in files]
    with reaching(target), missing_bucket(target):
        target.fs.put([str(path) for path in files], [copy.path for copy in copies])


@contextlib.contextmanager
def downloaded(folder: "UPath", names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder of this machine with objects below a folder as files.

    Raises:
      FileNotFoundError: one of them is not there.
      UserError: the store cannot be reached, or this machine's disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="bdjax-") as name:
        copies = [os.path.join(name, each) for each in names]
        for copy in copies:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
        with reaching(folder):
            folder.fs.get([(folder / each).path for each in names], copies)
        yield Path(name)
