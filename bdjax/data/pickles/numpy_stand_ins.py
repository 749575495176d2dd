"""What the names of NumPy inside a pickle are bound to: classes and functions of our own that copy bytes and run nothing.

An unpickler that knows these names and refuses the others reads arrays of numbers from files nobody has to trust.
"""

import re
from typing import Any

import numpy as np

from bdjax.errors import UserError

_CODE = re.compile(r"[|<>=]?[biuf][1248]")


def raw(data: Any) -> bytes:
    """Bytes, or the text that Python 2 and old protocols make of them."""
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def encode(text: str = "", encoding: str = "latin1") -> bytes:
    """Return bytes as the first three protocols store them."""
    return text.encode("latin1")


class Dtype:
    """Stands for ``numpy.dtype``; ``value`` holds the dtype."""

    def __init__(self, code: Any, align: bool = False, copy: bool = True) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        if not _CODE.fullmatch(text):
            raise UserError(f"a NumPy array of type {text!r}; only numbers are read")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class Array:
    """Stands for ``numpy.ndarray``; ``value`` holds the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(raw(data), dtype.value)
        self.value = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.value.newbyteorder("="))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.value.ndim

    def array(self) -> np.ndarray:
        """Return the array."""
        return self.value


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    return Array()


def _frombuffer(data: Any, dtype: Dtype, shape: Any, order: str, axes: tuple[int, ...] | None = None) -> Array:
    """Return an array as the fifth protocol stores it."""
    found, flat = Array(), np.frombuffer(raw(data), dtype.value)
    value = flat.reshape(shape, order="F" if order == "F" else "C")
    value = value.transpose(axes) if order == "K" and axes is not None else value
    found.value = value.astype(dtype.value.newbyteorder("="))
    return found


def _scalar(dtype: Dtype, data: Any) -> Any:
    return np.frombuffer(raw(data), dtype.value, count=1)[0].item()


STAND_INS: dict[str, Any] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    "_codecs.encode": encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
