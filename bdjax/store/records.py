"""What is kept of a sweep: a Parquet file per finished cell and member set.

``out/records/<cell>/<members>.parquet`` appears complete or not at all (:mod:`bdjax.store.atomic`). A file whose checksums do not
match is named on stderr and quarantined as ``*.corrupt``; the next run does its work again.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from bdjax.errors import command
from bdjax.population import hosts
from bdjax.store import location
from bdjax.store.absent import no_folder
from bdjax.store.atomic import Corrupt, quarantine, replace_file, writing
from bdjax.store.hashing import json_digest
from bdjax.store.location import Location
from bdjax.store.rows import ADDED, COLUMNS, ORDER, Row, arrow_schema

_DIGEST = b"bdjax.rows.sha256"


def record_path(out: Location, cell: str, members: str) -> Location:
    """Return where the rows of one finished cell and member set lie."""
    return out / "records" / cell / f"{members}.parquet"


def write_rows(out: Location, cell: str, members: str, rows: Sequence[Row]) -> Location:
    """Store the rows of a finished cell and member set, replacing what lay there.

    Args:
      out: folder of the sweep.
      cell: hash of the cell.
      members: hash of the member set.
      rows: with every column of :data:`bdjax.store.rows.COLUMNS`.

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
    if hosts.is_leader():
        with writing(path):
            location.write_bytes(_checksum_path(path), hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return path


def _checksum_path(path: Location) -> Location:
    """Return where the sha256 of a file of rows lies. Where it is missing or old, the file is checked row by row."""
    return path.with_suffix(".sha256")


def _is_unchanged(data: bytes | OSError, checksum: bytes | OSError) -> bool:
    """Return whether these are the bytes that were written."""
    return isinstance(data, bytes) and checksum == hashlib.sha256(data).hexdigest().encode()


def _rows_digest(rows: Sequence[Row]) -> bytes:
    return json_digest(list(rows)).encode()


def read_file(path: Location) -> list[Row]:
    """Return the rows of one file.

    Raises:
      Corrupt: it is truncated, or a checksum does not match.
      UserError: the store it lies in cannot be reached.
    """
    data, checksum = location.read_many([path, _checksum_path(path)])
    return _rows_of(data, checksum)


def _rows_of(data: bytes | OSError, checksum: bytes | OSError) -> list[Row]:
    """Return the rows in the bytes of a file, or raise Corrupt.

    The checksums of Parquet's pages do not cover its footer, so the rows have a digest of their own.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if isinstance(data, OSError):
            raise data
        # A few rows need no threads, and a short process that ends beside pyarrow's aborts now and then (3 in 18, machine busy).
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True, use_threads=False)
        rows = table.to_pylist()
        if not _has_columns_of_a_record(table.schema):
            raise Corrupt("its columns are not those of a record")
        if not _is_unchanged(data, checksum) and (table.schema.metadata or {}).get(_DIGEST) != _rows_digest(rows):
            raise Corrupt("its rows do not match their checksum")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise Corrupt(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return rows if len(table.schema) == len(COLUMNS) else [{name: row.get(name) for name in COLUMNS} for row in rows]


def _has_columns_of_a_record(schema: Any) -> bool:
    """Return whether these are the columns of a record, of this version or of one that did not have some of them yet."""
    full = arrow_schema()
    if not set(COLUMNS) - ADDED <= set(schema.names) <= set(COLUMNS):
        return False
    return list(schema) == [full.field(name) for name in COLUMNS if name in schema.names]


class _File(NamedTuple):
    path: Location
    data: bytes | OSError  # why it cannot be read
    checksum: bytes | OSError


def _files(folder: Location, pattern: str) -> list[_File]:
    """Return files of rows with their checksums, without those that another process moved meanwhile."""
    paths = location.files(folder, pattern)
    contents = location.read_many(paths)
    checksums = location.read_many([_checksum_path(path) for path in paths])
    found = map(_File, paths, contents, checksums)
    return [file for file in found if not isinstance(file.data, FileNotFoundError)]


def read_cell(out: Location, cell: str) -> list[tuple[str, Row]]:
    """Return all (member set, row) of a cell, in the order of file names; corrupt files are quarantined."""
    return [(file.path.stem, row) for file in _files(out / "records" / cell, "*.parquet") for row in _rows_or_none(file)]


def latest(rows: Sequence[Row]) -> list[Row]:
    """Return one row per cell and member: a failed one only where no other is stored, and the newest of several."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["cell"], row["member"])
        if key not in best or _rank(row) > _rank(best[key]):
            best[key] = row
    return list(best.values())


def _rank(row: Row) -> tuple[bool, str]:
    return row["status"] != "failed", row["created"]


def read_rows(out: Location) -> list[Row]:
    """Return all rows of a sweep, one per cell and member, in the order of their scenario; corrupt files are quarantined."""
    rows: list[Row] = _collect(out).to_dicts()
    return rows


def _collect(out: Location) -> Any:
    """Return all rows of a sweep as :func:`read` does.

    Files that agree with their checksums are read together, the others one by one.
    """
    import polars as pl

    unchanged: list[_File] = []
    rest: list[_File] = []
    for file in _files(out / "records", "*/*.parquet"):
        (unchanged if _is_unchanged(file.data, file.checksum) else rest).append(file)
    try:
        frames = (
            [pl.scan_parquet([file.data for file in unchanged if isinstance(file.data, bytes)], glob=False).collect()]
            if unchanged
            else []
        )
        frames = [_with_every_column(found) for found in frames]
    except pl.exceptions.PolarsError:  # another version wrote some of them: which, is found one by one
        frames, rest = [], sorted((*unchanged, *rest))
    rows = [row for file in rest for row in _rows_or_none(file)]
    every = pl.concat([*frames, frame(rows)])
    finished = pl.col("status") != "failed"
    newest = every.sort(finished, "created", descending=True, maintain_order=True)
    best = newest.unique(["cell", "member"], keep="first", maintain_order=True)
    return best.sort(*ORDER, "member")


def _with_every_column(found: Any) -> Any:
    """Return rows with every column of a record, null where their version did not have it yet.

    Raises:
      SchemaError: they have other columns.
    """
    import polars as pl

    there = [name for name in COLUMNS if name in found.columns]
    if found.columns != there or set(COLUMNS) - set(there) - ADDED:
        raise pl.exceptions.SchemaError
    empty = frame([]).schema
    return found.with_columns(pl.lit(None, empty[name]).alias(name) for name in COLUMNS if name not in there).select(COLUMNS)


def _rows_or_none(file: _File) -> list[Row]:
    """Return the rows of a file; none where it is corrupt, and then it is quarantined."""
    try:
        return _rows_of(file.data, file.checksum)
    except Corrupt as reason:
        quarantine(file.path, str(reason))
        return []


def frame(rows: Sequence[Row]) -> Any:
    """Return rows as a polars data frame with the columns of a record, also where there are none."""
    import polars as pl
    import pyarrow as pa

    return pl.from_arrow(pa.Table.from_pylist(list(rows), arrow_schema()))


def read(out: "str | Location") -> Any:
    """Return all rows of a sweep as a polars data frame.

    Raises:
      UserError: there is no such folder.
    """
    folder = location.locate(out)
    if not location.is_folder(folder):
        raise no_folder(
            folder, "records", f"quickstart, run and sweep write them, for example with: {command('run', '--out', folder)}"
        )
    return _collect(folder)
