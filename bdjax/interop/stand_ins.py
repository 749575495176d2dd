"""What the names inside a pickled checkpoint are bound to: small classes and functions of our own that only hold data.

Neither PyTorch's, NumPy's nor Pillow's code sees the file. A name that is not in the table is refused, so nothing else is called.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from bdjax.errors import UserError
from bdjax.interop.tensors import TYPES, Number, Odd, Storage, Tensor

_CODE = re.compile(r"[biuf][1248]")
_BANDS = {"L": 1, "RGB": 3}


class Inert:
    """Stands for settings, optimisers and schedulers that lie beside the weights; holds nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Nothing of it is kept."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing of it is kept."""

    def append(self, value: Any) -> None:
        """Nothing of it is kept."""

    def extend(self, values: Any) -> None:
        """Nothing of it is kept."""

    def add(self, value: Any) -> None:
        """Nothing of it is kept."""


class _Dtype:
    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise UserError(f"a NumPy array of type {code!r}; only numbers are read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder("<" if state[1] == "|" else state[1])


def _raw(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2 wrote bytes as text


class Array:
    """Stands for ``numpy.ndarray``; ``value`` holds the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(_raw(raw), dtype.value)
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
        """The array."""
        return self.value


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> Array:
    return Array()


def _buffered(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None) -> Array:
    """An array as the fifth protocol of pickles stores it."""
    found, flat = Array(), np.frombuffer(_raw(raw), dtype.value)
    value = flat.reshape(shape, order="F" if order == "F" else "C")
    value = value.transpose(axes) if order == "K" and axes is not None else value
    found.value = value.astype(dtype.value.newbyteorder("="))
    return found


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return np.frombuffer(_raw(raw), dtype.value, count=1)[0].item()


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
        return np.frombuffer(_raw(self.raw), np.uint8).reshape(height, width, _BANDS[self.mode])


def _first(value: Any = None, *_: Any) -> Any:
    """A parameter is its tensor."""
    return value


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *more: Any) -> Tensor:
    number = next((item for item in more if isinstance(item, Number)), None)  # where the storage is plain bytes
    if number is not None:
        storage = Storage(number, storage.count * storage.number.size // number.size, storage.read, storage.order)
    return Tensor(storage, offset, size, stride)


def _typed(make: Any, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    return make(*arguments)


def _reconstructed(kind: Any, base: Any, state: Any) -> Any:
    """How the first two protocols make an object."""
    return kind()


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """How the first three protocols store bytes."""
    return text.encode("latin1")


def _bytearray(data: Any = b"", encoding: str = "latin1") -> bytes:
    return b"" if isinstance(data, int) else _raw(data)


def _counted(*_: Any) -> dict[Any, Any]:
    return {}


_ODD: tuple[str, ...] = ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor")
_ODD += ("_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass")
STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _buffered for core in ("core", "_core")},
    **{f"PIL.{name}": Picture for name in ("Image.Image", "PngImagePlugin.PngImageFile")},
    **{f"torch._utils.{name}": _tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")},
    **{f"torch._utils.{name}": Odd for name in _ODD},
    **{f"torch._utils.{name}": _first for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")},
    **{f"torch.nn.parameter.{name}": _first for name in ("Parameter", "Buffer")},
    "torch._tensor._rebuild_from_type_v2": _typed,
    **dict.fromkeys(("torch.Tensor", "torch._tensor.Tensor", "torch.device", "torch.serialization._get_layout"), Inert),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _counted,
    "collections.Counter": _counted,
    "collections.deque": deque,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstructed,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, list, dict, tuple, complex, slice)},
    **{f"builtins.{name}": Inert for name in ("object", "int", "float", "str", "bool")},  # as arguments of others
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
}
# What people keep beside weights. Each name is a class of settings, times, paths, optimisers or schedulers.
_BESIDE = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib(\._local)?\.\w+|datetime\.\w+|easydict\.EasyDict|addict\.addict\.Dict"
    r"|yacs\.config\.CfgNode|ml_collections\.config_dict\.config_dict\.ConfigDict|omegaconf\.\w+\.\w+|[\w.]+\.AttributeDict"
    r"|torch\.optim\.[\w.]+|torch\.torch_version\.TorchVersion|numpy\.dtypes\.\w+"
)

_NOT_READ = re.compile(r"complex\d|quint|qint|float8|bits\d")  # dtypes of PyTorch that are known and not read


def stand_in(name: str) -> Any:
    """What a name is bound to; None where it is refused."""
    if name in STAND_INS:
        return STAND_INS[name]
    kind = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", name) or re.fullmatch(r"torch\.(\w+)", name)
    if kind is not None and (kind[1] in TYPES or name.endswith("Storage") or _NOT_READ.match(kind[1])):
        return Number(kind[1])
    return Inert if _BESIDE.fullmatch(name) else None
