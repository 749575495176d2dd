"""Read a pickled checkpoint without letting it run anything, and without PyTorch.

``torch.save`` writes a zip archive, or in older versions a row of pickles with the tensors' data behind them; a plain pickle of
NumPy arrays is read too. Every name in a pickle is bound to a stand-in of our own (:mod:`bdjax.data.pickles.torch_stand_ins`),
whatever the protocol; a file that asks for any other is refused before anything is called.
"""

import _compat_pickle
import io
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bdjax.data.pickles.outline import advice
from bdjax.data.pickles.tensors import Number, Storage
from bdjax.data.pickles.torch_stand_ins import STAND_INS, stand_in
from bdjax.errors import UserError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # how the older form of torch.save begins
_TEXT = re.compile(r"\('storage', <class 'torch\.(?:storage\.)?(\w+)Storage'>, '(\w+)', '[\w:]+', (\d+)(?:, None)?\)")
Locate = Callable[[Any], Storage]


class _Refused(Exception):
    """A pickle names an object that is not read."""


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO | io.BytesIO, locate: Locate) -> None:
        super().__init__(file, encoding="latin1")  # what Python 2 wrote: names, and the bytes of its arrays
        self._locate = locate

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; nothing is imported."""
        full = real_name(module, name)
        if full == "torch.storage._load_from_bytes":  # a tensor that was pickled without torch.save
            return _nested
        found = stand_in(full)
        if found is None:
            raise _Refused(full)
        return found

    def persistent_load(self, saved: Any) -> Any:
        """The storage behind a tensor."""
        if isinstance(saved, tuple) and saved and saved[0] == "module":  # the older form's note of a class and its source
            return saved[1]
        return self._locate(saved)


def real_name(module: str, name: str) -> str:
    """Return the name of an object in Python 3, also where an older protocol wrote that of Python 2."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def load_pickled(path: Path) -> Any:
    """Return the object in a checkpoint: plain containers and the stand-ins of tensors, arrays and images.

    Raises:
      UserError: the file is truncated or no checkpoint; it asks for any other Python object (named; nothing of it is run).
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _archive(path)
            file.seek(0)
            if file.read(4) == b"PK\x03\x04":
                raise EOFError("the end of its zip archive is missing")
            file.seek(0)
            return _stream(file, path.stat().st_size, lambda at, count: _bytes_of(path, at, count))
    except _Refused as refused:
        raise UserError(_refusal(path, str(refused))) from None
    except UserError as error:
        raise UserError(f"{path} holds {error}") from None
    except Exception as error:  # whatever a damaged file makes the reader do
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()[:160]
        reason = f"{path} ({path.stat().st_size} bytes) is truncated, damaged or no PyTorch checkpoint: {last}"
        raise UserError(_older_tar(path) or reason) from None


def _archive(path: Path) -> Any:
    archive = zipfile.ZipFile(path)  # stays open for tensors that are read later, and closes with the last of them
    names = set(archive.namelist())
    entry = next((name for name in sorted(names) if name == "data.pkl" or name.endswith("/data.pkl")), None)
    if entry is None:
        entries = ", ".join(sorted(names)[:4]) or "nothing"
        raise UserError(f"a zip archive, but no PyTorch checkpoint: {entries}; unpack it first if the checkpoint lies in it")
    folder = entry.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise UserError(
            "a TorchScript program and not weights; save those: "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pt')"
        )
    big = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"
    storages: dict[str, Storage] = {}

    def locate(saved: Any) -> Storage:
        number, key, count = _described(saved)
        where = f"{folder}data/{key}"
        if where not in names:
            raise UserError(f"a tensor whose data {where} are missing")
        if key not in storages:
            storages[key] = Storage(number, count, lambda: archive.read(where), ">" if big else "<")
        return _as(storages[key], number, count)

    return _Reader(io.BytesIO(archive.read(entry)), locate).load()


def _stream(file: BinaryIO | io.BytesIO, size: int, read: Callable[[int, int], bytes]) -> Any:
    """Return the older form of ``torch.save``, or a plain pickle; ``read`` gives bytes by place and number."""

    def nowhere(saved: Any) -> Storage:
        raise ValueError("a tensor without data")

    first = _Reader(file, nowhere).load()
    if first != _MAGIC or isinstance(first, bool):
        return first
    version, system = _Reader(file, nowhere).load(), _Reader(file, nowhere).load()
    if version != _VERSION or not isinstance(system, dict):
        raise ValueError(f"version {version!r} of the file format is not known")
    order = "<" if system.get("little_endian", True) else ">"
    storages: dict[str, Storage] = {}

    def locate(saved: Any) -> Storage:
        number, key, count = _described(saved)
        if key not in storages:
            storages[key] = Storage(number, count, lambda: b"", order)
        view = saved[5] if isinstance(saved, tuple) and len(saved) > 5 else None
        if view is None:
            return _as(storages[key], number, count)
        _, offset, length = view
        start, storage = int(offset) * number.size, storages[key]
        return Storage(number, int(length), lambda: storage.read()[start : start + length * number.size], order)

    root, keys = _Reader(file, locate).load(), _Reader(file, nowhere).load()
    for key in keys:
        (count,) = struct.unpack(f"{order}q", file.read(8))
        at, storage = file.tell(), storages[str(key)]
        length = count * storage.number.size
        if count < 0 or at + length > size:
            raise EOFError(f"a tensor needs {length} bytes, {size - at} are there")
        storage.count, storage.read = count, lambda at=at, length=length: read(at, length)  # type: ignore[misc]
        file.seek(length, io.SEEK_CUR)
    return root


def _nested(data: Any) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return _stream(io.BytesIO(raw), len(raw), lambda at, count: raw[at : at + count])


def _described(saved: Any) -> tuple[Number, str, int]:
    """Kind, key and number of elements of a storage; the first protocol writes them as a line of text."""
    if isinstance(saved, str):
        found = _TEXT.fullmatch(saved)
        if found is None:
            raise UserError(f"a reference that is not known: {saved[:60]!r}")
        return Number(found[1]), found[2], int(found[3])
    what, number, key, _, count = saved[:5]
    if what != "storage" or not isinstance(number, Number) or type(count) is not int or count < 0:
        raise UserError(f"a reference that is not known: {what!r}")
    return number, str(key), count


def _as(storage: Storage, number: Number, count: int) -> Storage:
    """Return the same bytes as another type, which older versions of PyTorch write for views."""
    if storage.number.code == number.code:
        return storage
    return Storage(number, count, lambda: storage.read(), storage.order)


def _bytes_of(path: Path, at: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(count)


def _older_tar(path: Path) -> str | None:
    """Return what to say of the oldest form of ``torch.save``, a tar archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            if "pickle" not in archive.getnames():
                return None
    except (OSError, tarfile.TarError):
        return None
    return f"{path} was written by a PyTorch older than 0.2 (a tar archive); load it and save its state dict with a newer one"


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path} asks for the Python object {name}: refused, nothing of it was run; only tensors, numbers, NumPy arrays and "
        f"images are read. {advice(path, STAND_INS)}"
    )
