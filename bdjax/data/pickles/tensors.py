"""The tensors of a pickled checkpoint as data: where their numbers lie in the file, and how they become NumPy arrays."""

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bdjax.errors import UserError

_STRETCHED = 1 << 28  # elements that a tensor may have beyond those that are stored: a tensor may repeat one of them
BFLOAT16 = "bfloat16"
TYPES = {
    **dict.fromkeys(("Double", "float64", "double"), "f8"),
    **dict.fromkeys(("Float", "float32", "float"), "f4"),
    **dict.fromkeys(("Half", "float16", "half"), "f2"),
    **dict.fromkeys(("BFloat16", "bfloat16"), BFLOAT16),
    **dict.fromkeys(("Long", "int64", "long"), "i8"),
    **dict.fromkeys(("Int", "int32", "int"), "i4"),
    **dict.fromkeys(("Short", "int16", "short"), "i2"),
    **dict.fromkeys(("Char", "int8"), "i1"),
    **dict.fromkeys(("Byte", "uint8", "Untyped"), "u1"),
    **dict.fromkeys(("Bool", "bool"), "?"),
}


class Number:
    """A dtype of PyTorch, or the kind of a storage; ``code`` is NumPy's, None for complex and quantised ones."""

    def __init__(self, name: str) -> None:
        self.code = TYPES.get(name)

    def __setstate__(self, state: Any) -> None:
        """A file cannot change one."""

    @property
    def size(self) -> int:
        """Bytes of one element."""
        if self.code is None:
            raise UserError("a tensor of a type that is not read; only real numbers are")
        return 2 if self.code == BFLOAT16 else np.dtype(self.code).itemsize


class Storage:
    """The numbers behind tensors, read from the file when the first of them is asked for.

    Args:
      number: of the elements.
      count: elements.
      read: gives their bytes.
      order: "<" or ">", the order of bytes.
    """

    def __init__(self, number: Number, count: int, read: Callable[[], bytes], order: str = "<") -> None:
        self.number, self.count, self.read, self.order = number, count, read, order
        self._values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """A file cannot change one."""

    def values(self) -> np.ndarray:
        """Return the elements, flat; bfloat16 as float32, which holds each of its values."""
        if self._values is None:
            wanted = self.count * self.number.size
            try:
                raw = self.read()
            except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"a tensor whose data are truncated or damaged ({error})") from None
            if len(raw) < wanted:
                raise UserError(f"a tensor whose data are truncated: {len(raw)} of {wanted} bytes are there")
            self._values = decoded(raw[:wanted], str(self.number.code), self.order)
        return self._values


def decoded(raw: bytes, code: str, order: str = "<") -> np.ndarray:
    """Return bytes as numbers of this machine; bfloat16 becomes float32."""
    if code == BFLOAT16:
        high = np.frombuffer(raw, f"{order}u2").astype(np.uint32)
        return (high << np.uint32(16)).view(np.float32)
    kind = np.dtype(f"{order}{code}")
    return np.frombuffer(raw, kind).astype(kind.newbyteorder("="))


class Tensor:
    """Stands for ``torch.Tensor``: a strided view of a storage."""

    def __init__(self, storage: Storage, offset: int, size: Sequence[int], stride: Sequence[int]) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(size), tuple(stride)

    def __setstate__(self, state: Any) -> None:
        """A file cannot change one."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def array(self) -> np.ndarray:
        """Return a copy as a NumPy array.

        Raises:
          UserError: it reaches beyond what is stored, its data are damaged, or it holds no real numbers.
        """
        numbers = (self.offset, *self.shape, *self.stride)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.stride):
            raise UserError(f"a tensor with impossible sizes ({list(self.shape)})")
        flat, count = self.storage.values(), math.prod(self.shape)
        if count == 0:
            return np.zeros(self.shape, flat.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if last >= len(flat) or count > max(len(flat), _STRETCHED):
            raise UserError(f"a tensor {list(self.shape)} that reaches beyond its {len(flat)} stored numbers")
        steps = [step * flat.itemsize for step in self.stride]
        return np.array(np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False))


class Odd:
    """Stands for a tensor that is not plain and dense: sparse, quantised, nested, without data."""

    shape = ()
    ndim = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Nothing of it is kept."""

    def array(self) -> np.ndarray:
        """Raises UserError."""
        raise UserError("not a plain dense tensor")
