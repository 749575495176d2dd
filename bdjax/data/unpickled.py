"""Read a pickle of numbers, texts, lists, dictionaries and NumPy arrays, and nothing else.

The names that such a pickle may ask for are bound to the stand-ins below, which copy bytes; any other name is refused before
anything of it is imported, so that nothing in a file is run.
"""

import io
import pickle
import re
from typing import Any

import numpy as np

from bdjax.errors import UserError

_CODE = re.compile(r"[|<>=]?[biuf][1248]")


class _Dtype:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: Any, align: bool = False, copy: bool = True) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        if not _CODE.fullmatch(text):
            raise UserError(f"a NumPy array of type {text!r}; only numbers are read")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stands for ``numpy.ndarray``; ``value`` holds the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = np.frombuffer(_bytes(raw), dtype.value).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: _Dtype, shape: Any, order: str, *rest: Any) -> _Array:
    if order not in ("C", "F"):
        raise UserError(f"a NumPy array in the order {order!r}")
    array = _Array()
    array.value = np.frombuffer(_bytes(raw), dtype.value).reshape(shape, order=order)  # type: ignore[call-overload]
    return array


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return np.frombuffer(_bytes(raw), dtype.value, count=1)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _bytes(raw: Any) -> bytes:
    """Bytes, or the text that old protocols make of them."""
    return raw.encode("latin1") if isinstance(raw, str) else bytes(raw)


_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise UserError(f"the Python object {module}.{name}: refused, nothing of it was run") from None


def unpickled(data: bytes) -> Any:
    """The object in a pickle of any protocol; texts of Python 2 come as bytes, arrays as ``numpy.ndarray``.

    Raises:
      UserError: it asks for anything beyond numbers, texts, containers and NumPy arrays of numbers, or is no whole pickle.
    """
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="bytes").load())
    except UserError as error:
        raise UserError(f"it holds {error}; only numbers, texts and NumPy arrays are read") from None
    except Exception as error:  # whatever a damaged file makes the reader do
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"it is truncated, damaged or no pickle ({told})") from None


def _plain(value: Any) -> Any:
    """Arrays for their stand-ins, at the top and in a dictionary."""
    if isinstance(value, dict):
        return {key: item.value if isinstance(item, _Array) else item for key, item in value.items()}
    return value.value if isinstance(value, _Array) else value
