"""Read a pickled checkpoint without letting it run anything.

PyTorch's weights-only reader builds tensors and plain containers and nothing else. Checkpoints of this benchmark also hold NumPy
arrays, NumPy scalars and Pillow images; those names are bound to the stand-ins below, which only copy bytes, so neither NumPy's
nor Pillow's own code sees the file.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.errors import UserError

MINIMUM = (2, 10)  # older readers run code or corrupt memory on crafted files: CVE-2025-32434, CVE-2026-24747
_CODE = re.compile(r"[biuf][1248]")
_BANDS = {"L": 1, "RGB": 3}
_LARGEST = 1 << 28  # bytes of a pickle that are searched for the name to put into a message


class _Dtype:
    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise UserError(f"a NumPy array of type {code!r}; only numbers are read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder("<" if state[1] == "|" else state[1])


class Array:
    """Stands for ``numpy.ndarray``; ``value`` holds the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.value)
        self.value = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.value.newbyteorder("="))


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> Array:
    return Array()


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.value, count=1)[0].item()


class Picture:
    """Stands for ``PIL.Image.Image``."""

    mode: str
    size: tuple[int, int]
    raw: bytes

    def __setstate__(self, state: list[Any]) -> None:
        _, self.mode, self.size, _, self.raw = state[:5]

    def pixels(self) -> np.ndarray:
        """u8[h w c]."""
        if self.mode not in _BANDS:
            raise UserError(f"a stored image has mode {self.mode!r}; allowed: {', '.join(_BANDS)}")
        width, height = self.size
        return np.frombuffer(self.raw, np.uint8).reshape(height, width, _BANDS[self.mode])


_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"PIL.{name}": Picture for name in ("Image.Image", "PngImagePlugin.PngImageFile")},
}


def torch_module() -> Any:
    """Import PyTorch.

    Raises:
      UserError: it is not installed, or too old to read files safely.
    """
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch files need PyTorch; install it with: pip install 'bdjax[torch]'") from None
    version = torch.__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise UserError(
            f"PyTorch {version} cannot read untrusted files safely; install {wanted} or newer (pip install 'bdjax[torch]')"
        )
    return torch


def load_pickled(path: Path) -> Any:
    """The object in a ``torch.save`` file, made of plain containers, tensors on the CPU, :class:`Array` and :class:`Picture`.

    Raises:
      UserError: PyTorch is missing; the file is truncated or no checkpoint; it asks for any other Python object (named; nothing
        of it is run).
    """
    torch = torch_module()
    try:
        allowed = torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{path} holds {error}") from None
    except Exception as error:  # whatever a damaged file makes the reader do
        raise UserError(_explain(path, error)) from None


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    found = re.search(r"GLOBAL (?!instruction)([\w.]+)", text) if isinstance(error, pickle.UnpicklingError) else None
    name = found.group(1) if found else _asked(path)
    if name is not None:
        return (
            f"{path} asks for the Python object {name}: refused, nothing of it was run; only tensors, numbers, NumPy arrays and "
            "images are read. If it is a whole pickled network from a source you trust, save its state_dict() instead"
        )
    told = next((line for line in reversed(text.splitlines()) if line.strip()), type(error).__name__).strip()[:160]
    size = path.stat().st_size
    return f"{path} ({size} bytes) is truncated, damaged or no PyTorch checkpoint: {told}"


def _asked(path: Path) -> str | None:
    """The first object beyond the allowed ones that a pickle names; for files whose format stops the reader before it sees it."""
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(_pickle_bytes(path)):
            if code.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
            elif code.name == "STACK_GLOBAL" and len(strings) > 1:
                name = ".".join(strings[-2:])
            else:
                strings += [argument] if isinstance(argument, str) else []
                continue
            if name not in _STAND_INS and not name.startswith(("torch.", "collections.OrderedDict", "_codecs.")):
                return name
    except Exception:  # not a pickle, or a damaged one: there is no name to tell
        return None
    return None


def _pickle_bytes(path: Path) -> bytes:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entry = next(info for info in archive.infolist() if info.filename.endswith("data.pkl") and info.file_size < _LARGEST)
            return archive.read(entry)
    with open(path, "rb") as file:
        return file.read(_LARGEST)
