"""What is kept of a sweep: a Parquet file per finished cell and member set.

``out/records/<cell>/<members>.parquet`` appears complete or not at all (on a disk: written under a temporary name, synced,
renamed; in an object store every upload is so). A file whose checksums do not match is named on stderr and moved aside as
``*.corrupt``; the next run does its work again.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.population import hosts
from bdjax.sweep import location, objects
from bdjax.sweep.build import canonical
from bdjax.sweep.location import Location
from bdjax.sweep.rows import COLUMNS, ORDER, Row, arrow_schema

ADVICE = "free some space or choose another --out; the same command goes on where this one stopped"
_DIGEST = b"bdjax.rows.sha256"
_WRITE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)


class Corrupt(Exception):
    """A stored file is not what was written; the message says why."""


@contextlib.contextmanager
def writing(path: Location) -> Iterator[None]:
    """Turn what goes wrong while writing below ``path`` into one clear line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {ADVICE}") from error
    except Exception as error:
        # The checkpoint library reports a full disk in exceptions of its own.
        text = str(error).lower()
        known = [code for code in _WRITE_ERRORS if os.strerror(code).lower() in text]
        if not known:
            raise
        raise UserError(f"cannot write {path}: {os.strerror(known[0])}; {ADVICE}") from error


def writable(out: str | os.PathLike[str] | Location) -> Location:
    """The place that a path or URL names, made if need be.

    Raises:
      UserError: nothing can be written there, or it is a URL of an unknown kind.
    """
    place = location.locate(out)
    if not isinstance(place, Path):
        uploaded = place / f".probe.{token()}"
        objects.put(uploaded, b"bdjax")
        objects.remove(uploaded)
        return place
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        probe = temporary_of(place / "probe")
        with open(probe, "wb") as file:
            probe.unlink()  # at once: a process that is killed here leaves nothing
            file.write(b"bdjax")
            file.flush()
    return place


@functools.cache
def _token(pid: int) -> str:
    return f"{pid}-{uuid.uuid4().hex[:12]}"


def token() -> str:
    """A name of this process that no other has, on any machine."""
    return _token(os.getpid())


def temporary_of(path: Path) -> Path:
    """Where this process writes what will be ``path``, beside it."""
    return path.with_name(f".{path.name}.{token()}.tmp")


def replace_file(path: Location, data: bytes) -> None:
    """Write a file so that it is complete or absent, whatever happens; of processes that run the same, the first one writes."""
    if not hosts.leads():
        return
    if not isinstance(path, Path):
        objects.put(path, data)
        return
    temporary = temporary_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Location, reason: str) -> None:
    """Name a corrupt file or folder on stderr and move it to ``<name>.corrupt``."""
    target, number = path.with_name(path.name + ".corrupt"), 1
    while location.exists(target):
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    try:
        location.move(path, target)
    except FileNotFoundError:  # another process that shares the folder was faster
        return
    print(f"bdjax: {path} is corrupt ({reason}); moved to {target.name}, its work is redone by the next run", file=sys.stderr)


def record_path(out: Location, cell: str, members: str) -> Location:
    """Where the rows of one finished cell and member set lie."""
    return out / "records" / cell / f"{members}.parquet"


def write_rows(out: Location, cell: str, members: str, rows: Sequence[Row]) -> Location:
    """Store the rows of a finished cell and member set, replacing what lay there.

    Args:
      out: folder of the sweep.
      cell: hash of the cell.
      members: hash of the member set.
      rows: with every column of :data:`bdjax.sweep.rows.COLUMNS`.

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    table = pa.Table.from_pylist(list(rows), schema)
    table = table.replace_schema_metadata({_DIGEST: _rows_digest(table.to_pylist())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    path = record_path(out, cell, members)
    replace_file(path, buffer.getvalue())
    if hosts.leads():
        with writing(path):
            location.write_bytes(_seal(path), hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return path


def _seal(path: Location) -> Location:
    """Where the sha256 of a file of rows lies; one that is missing or old says nothing, and the file is checked row by row."""
    return path.with_suffix(".sha256")


def _sealed(data: bytes | OSError, seal: bytes | OSError) -> bool:
    """Whether these are the bytes that were written."""
    return isinstance(data, bytes) and seal == hashlib.sha256(data).hexdigest().encode()


def _rows_digest(rows: Sequence[Row]) -> bytes:
    return hashlib.sha256(canonical(list(rows)).encode()).hexdigest().encode()


def read_file(path: Location) -> list[Row]:
    """The rows of one file.

    Raises:
      Corrupt: it is truncated, or a checksum does not match.
      UserError: the store it lies in cannot be reached.
    """
    data, seal = location.read_many([path, _seal(path)])
    return _rows_of(data, seal)


def _rows_of(data: bytes | OSError, seal: bytes | OSError) -> list[Row]:
    """The rows in the bytes of a file; raises Corrupt. The pages' checksums do not cover the footer: the rows have their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if isinstance(data, OSError):
            raise data
        # A few rows need no threads, and a short process that ends beside pyarrow's aborts now and then (3 in 18, machine busy).
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True, use_threads=False)
        rows = table.to_pylist()
        if not table.schema.equals(arrow_schema()):
            raise Corrupt("its columns are not those of a record")
        if not _sealed(data, seal) and (table.schema.metadata or {}).get(_DIGEST) != _rows_digest(rows):
            raise Corrupt("its rows do not match their checksum")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise Corrupt(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return rows


class _File(NamedTuple):
    path: Location
    data: bytes | OSError  # why it cannot be read
    seal: bytes | OSError


def _files(folder: Location, pattern: str) -> list[_File]:
    """Files of rows with their seals; without those that another process moved meanwhile."""
    paths = location.files(folder, pattern)
    contents = location.read_many(paths)
    seals = location.read_many([_seal(path) for path in paths])
    found = zip(paths, contents, seals, strict=True)
    return [_File(path, data, seal) for path, data, seal in found if not isinstance(data, FileNotFoundError)]


def read_cell(out: Location, cell: str) -> list[tuple[str, Row]]:
    """All (member set, row) of a cell, in the order of file names; corrupt files are set aside."""
    return [(file.path.stem, row) for file in _files(out / "records" / cell, "*.parquet") for row in _checked(file)]


def latest(rows: Sequence[Row]) -> list[Row]:
    """One row per cell and member: a failed one only where no other is stored, then the newest."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["cell"], row["member"])
        if key not in best or _rank(row) > _rank(best[key]):
            best[key] = row
    return list(best.values())


def _rank(row: Row) -> tuple[bool, str]:
    return row["status"] != "failed", row["created"]


def read_rows(out: Location) -> list[Row]:
    """All rows of a sweep, one per cell and member, in the order of their scenario; corrupt files are set aside."""
    rows: list[Row] = _collect(out).to_dicts()
    return rows


def _collect(out: Location) -> Any:
    """All rows of a sweep as :func:`read` gives them: whole files at once where they are sealed, the others one by one."""
    import polars as pl

    sealed: list[_File] = []
    rest: list[_File] = []
    for file in _files(out / "records", "*/*.parquet"):
        (sealed if _sealed(file.data, file.seal) else rest).append(file)
    try:
        frames = (
            [pl.scan_parquet([file.data for file in sealed if isinstance(file.data, bytes)], glob=False).collect()]
            if sealed
            else []
        )
        if any(found.columns != list(COLUMNS) for found in frames):
            raise pl.exceptions.SchemaError
    except pl.exceptions.PolarsError:  # another version wrote some of them: which, is found one by one
        frames, rest = [], sorted((*sealed, *rest))
    rows = [row for file in rest for row in _checked(file)]
    every = pl.concat([*frames, frame(rows)])
    finished = pl.col("status") != "failed"
    newest = every.sort(finished, "created", descending=True, maintain_order=True)
    best = newest.unique(["cell", "member"], keep="first", maintain_order=True)
    return best.sort(*ORDER, "member")


def _checked(file: _File) -> list[Row]:
    """The rows of a file; none where it is corrupt, and then it is set aside."""
    try:
        return _rows_of(file.data, file.seal)
    except Corrupt as reason:
        set_aside(file.path, str(reason))
        return []


def frame(rows: Sequence[Row]) -> Any:
    """Rows as a polars data frame with the columns of a record, also where there are none."""
    import polars as pl
    import pyarrow as pa

    return pl.from_arrow(pa.Table.from_pylist(list(rows), arrow_schema()))


def read(out: "str | Location") -> Any:
    """All rows of a sweep as a polars data frame.

    Raises:
      UserError: there is no such folder.
    """
    folder = location.locate(out)
    if not location.is_folder(folder):
        raise UserError(f"{folder} is no folder of records; write one with: bdjax sweep FILE.py --out {folder}")
    return _collect(folder)
