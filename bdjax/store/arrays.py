"""Large arrays of a method's trace, such as recovered triggers: one NumPy archive per record, beside the records."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.store import location
from bdjax.store.atomic import replace_file
from bdjax.store.location import Location

LIMIT = 4096  # numbers; a larger field of a trace is no text for a table


def split(trace: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Split a trace, a NamedTuple of arrays of one member, into the fields of its record and the arrays kept beside the records.

    In the record a field of more than :data:`LIMIT` numbers is {"array": its shape}.
    """
    fields = {name: np.asarray(value) for name, value in trace._asdict().items()}
    large = {name: value for name, value in fields.items() if value.size > LIMIT}
    return {name: {"array": list(value.shape)} if name in large else value for name, value in fields.items()}, large


def place(out: Location, cell: str, member: str) -> Location:
    """Return where the arrays of one record lie."""
    return out / "arrays" / cell / f"{member}.npz"


def write(out: Location, cell: str, member: str, fields: Mapping[str, NDArray[Any]]) -> None:
    """Store the arrays of one record, complete or not at all; float64 and float32 are kept as they are.

    Raises:
      UserError: the folder cannot be written or the disk is full.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(fields))  # type: ignore[arg-type]
    replace_file(place(out, cell, member), buffer.getvalue())


def read(out: "str | Location", row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a record by field; none where it has no archive, which is so of every record without a large field.

    Args:
      out: folder of the sweep.
      row: a record.

    Raises:
      UserError: they are damaged (the archive's checksums are compared).
    """
    path = place(location.locate(out), row["cell"], row["member"])
    try:
        with np.load(io.BytesIO(location.read_bytes(path)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return {}
    except UserError:  # its store cannot be reached
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and the record of its cell, and run the same command again"
        ) from error
