"""What is kept of a sweep: a Parquet file per finished cell and member set.

``out/records/<cell>/<members>.parquet`` appears complete or not at all (written under a temporary name, synced, renamed). A file
whose checksums do not match is named on stderr and moved aside as ``*.corrupt``; the next run does its work again.
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
from typing import Any

from bdjax.errors import UserError
from bdjax.population import hosts
from bdjax.sweep.build import canonical
from bdjax.sweep.rows import COLUMNS, ORDER, Row, arrow_schema

ADVICE = "free some space or choose another --out; the same command goes on where this one stopped"
_DIGEST = b"bdjax.rows.sha256"
_WRITE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)


class Corrupt(Exception):
    """A stored file is not what was written; the message says why."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
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


def writable(out: Path) -> Path:
    """Create the folder if need be and return it.

    Raises:
      UserError: nothing can be written there.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = temporary_of(out / "probe")
        with open(probe, "wb") as file:
            probe.unlink()  # at once: a process that is killed here leaves nothing
            file.write(b"bdjax")
            file.flush()
    return out


@functools.cache
def _token(pid: int) -> str:
    return f"{pid}-{uuid.uuid4().hex[:12]}"


def token() -> str:
    """A name of this process that no other has, on any machine."""
    return _token(os.getpid())


def temporary_of(path: Path) -> Path:
    """Where this process writes what will be ``path``, beside it."""
    return path.with_name(f".{path.name}.{token()}.tmp")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent, whatever happens; of processes that run the same, the first one writes."""
    if not hosts.leads():
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


def set_aside(path: Path, reason: str) -> None:
    """Name a corrupt file or folder on stderr and move it to ``<name>.corrupt``."""
    target, number = path.with_name(path.name + ".corrupt"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    try:
        os.replace(path, target)
    except FileNotFoundError:  # another process that shares the folder was faster
        return
    print(f"bdjax: {path} is corrupt ({reason}); moved to {target.name}, its work is redone by the next run", file=sys.stderr)


def record_path(out: Path, cell: str, members: str) -> Path:
    """Where the rows of one finished cell and member set lie."""
    return out / "records" / cell / f"{members}.parquet"


def write_rows(out: Path, cell: str, members: str, rows: Sequence[Row]) -> Path:
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
            _seal(path).write_text(hashlib.sha256(buffer.getvalue()).hexdigest())
    return path


def _seal(path: Path) -> Path:
    """Where the sha256 of a file of rows lies; one that is missing or old says nothing, and the file is checked row by row."""
    return path.with_suffix(".sha256")


def _sealed(path: Path, data: bytes) -> bool:
    """Whether these are the bytes that were written."""
    try:
        return _seal(path).read_text() == hashlib.sha256(data).hexdigest()
    except (OSError, ValueError):
        return False


def _rows_digest(rows: Sequence[Row]) -> bytes:
    return hashlib.sha256(canonical(list(rows)).encode()).hexdigest().encode()


def read_file(path: Path) -> list[Row]:
    """The rows of one file.

    Raises:
      Corrupt: it is truncated, or a checksum does not match. Those of the pages do not cover the footer, so the rows carry a hash
        of their own.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A few rows need no threads, and a short process that ends beside pyarrow's aborts now and then (3 in 18, machine busy).
        data = path.read_bytes()
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True, use_threads=False)
        rows = table.to_pylist()
        if not table.schema.equals(arrow_schema()):
            raise Corrupt("its columns are not those of a record")
        if not _sealed(path, data) and (table.schema.metadata or {}).get(_DIGEST) != _rows_digest(rows):
            raise Corrupt("its rows do not match their checksum")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise Corrupt(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return rows


def read_cell(out: Path, cell: str) -> list[tuple[str, Row]]:
    """All (member set, row) of a cell, in the order of file names; corrupt files are set aside."""
    return [(path.stem, row) for path in sorted((out / "records" / cell).glob("*.parquet")) for row in _checked(path)]


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


def read_rows(out: Path) -> list[Row]:
    """All rows of a sweep, one per cell and member, in the order of their scenario; corrupt files are set aside."""
    rows: list[Row] = _collect(out).to_dicts()
    return rows


def _collect(out: Path) -> Any:
    """All rows of a sweep as :func:`read` gives them: whole files at once where they are sealed, the others one by one."""
    import polars as pl

    sealed: list[tuple[Path, bytes]] = []
    rest: list[tuple[Path, bytes]] = []
    for path in sorted((out / "records").glob("*/*.parquet")):
        data = path.read_bytes()
        (sealed if _sealed(path, data) else rest).append((path, data))
    try:
        frames = [pl.scan_parquet([data for _, data in sealed], glob=False).collect()] if sealed else []
        if any(found.columns != list(COLUMNS) for found in frames):
            raise pl.exceptions.SchemaError
    except pl.exceptions.PolarsError:  # another version wrote some of them: which, is found one by one
        frames, rest = [], sorted((*sealed, *rest))
    rows = [row for path, _ in rest for row in _checked(path)]
    every = pl.concat([*frames, frame(rows)])
    finished = pl.col("status") != "failed"
    newest = every.sort(finished, "created", descending=True, maintain_order=True)
    best = newest.unique(["cell", "member"], keep="first", maintain_order=True)
    return best.sort(*ORDER, "member")


def _checked(path: Path) -> list[Row]:
    """The rows of a file; none where it is corrupt, and then it is set aside."""
    try:
        return read_file(path)
    except Corrupt as reason:
        set_aside(path, str(reason))
        return []


def frame(rows: Sequence[Row]) -> Any:
    """Rows as a polars data frame with the columns of a record, also where there are none."""
    import polars as pl
    import pyarrow as pa

    return pl.from_arrow(pa.Table.from_pylist(list(rows), arrow_schema()))


def read(out: str | Path) -> Any:
    """All rows of a sweep as a polars data frame.

    Raises:
      UserError: there is no such folder.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of records; write one with: bdjax sweep FILE.py --out {folder}")
    return _collect(folder)
