"""Fetch a data set's official archives: written atomically, after their digest was checked."""

import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path
from typing import BinaryIO

from bdjax.data.archives import file_digest
from bdjax.data.atomic import OWNER_ONLY, opened
from bdjax.data.source import Source
from bdjax.errors import UserError

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


def fetch(source: Source, folder: Path) -> None:
    """Fetch the archives of the first edition that names addresses; a file that is there and complete is kept.

    Plain ``urllib`` rather than the download manager of tensorflow-datasets, so that the core can fetch without an extra and the
    files keep the names under which they are looked for.

    Args:
      source: the data set.
      folder: where the archives go; made if need be.

    Raises:
      UserError: no edition can be fetched, no network, a wrong digest, a file of that name that is another one, or a full disk.
    """
    edition = next((edition for edition in source.editions if edition.urls), None)
    if edition is None:
        raise UserError(f"{source.spec.name} names no address to fetch it from.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}.") from error
    for file, url in edition.urls.items():
        path, expected = folder / file, edition.archives[file]
        if path.is_file():
            if file_digest(path, expected.partition(":")[0]) != expected:
                raise UserError(f"{path} is not the {edition.name} file of that name; move it away before fetching {url}.")
            continue
        _fetch(url, path, expected)


def _fetch(url: str, path: Path, expected: str) -> None:
    kind = expected.partition(":")[0]
    manual = f"fetch it by other means and put it at {path}"
    try:
        with opened(path, mode=OWNER_ONLY) as file:
            found = _copy(url, file, path, kind, manual)
            if found != expected:
                value = found.partition(":")[2]
                raise UserError(f"what {url} sends is not the known file: its {kind} is {value[:12]}...; {manual}.")
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror or error}.") from error


def _copy(url: str, file: BinaryIO, path: Path, kind: str, manual: str) -> str:
    """Stream what an address sends into a file; return the digest of it."""
    total = hashlib.new(kind, usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            size = f" ({int(length) / 1e6:,.1f} MB)" if length else ""
            print(f"bdjax: fetching {url}{size} to {path}", file=sys.stderr)
            while piece := response.read(CHUNK):
                total.update(piece)
                _write(file, piece, path)
    except UserError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot fetch {url} ({str(error).strip('<>')}); {manual}.") from error
    return f"{kind}:{total.hexdigest()}"


def _write(file: BinaryIO, piece: bytes, path: Path) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror or error}.") from error
