"""What the names inside a pickled checkpoint are bound to: small classes and functions of our own that only hold data.

Neither PyTorch's, NumPy's nor Pillow's code sees the file. A name that is not in the table is refused, so nothing else is called.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from bdjax.data.pickles import numpy_stand_ins
from bdjax.data.pickles.numpy_stand_ins import encode, raw
from bdjax.data.pickles.tensors import TYPES, Number, Odd, Storage, Tensor
from bdjax.errors import UserError

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
        return np.frombuffer(raw(self.raw), np.uint8).reshape(height, width, _BANDS[self.mode])


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


def _bytearray(data: Any = b"", encoding: str = "latin1") -> bytes:
    return b"" if isinstance(data, int) else raw(data)


def _counted(*_: Any) -> dict[Any, Any]:
    return {}


_ODD: tuple[str, ...] = ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor")
_ODD += ("_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass")
STAND_INS: dict[str, Any] = {
    **numpy_stand_ins.STAND_INS,
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
    "copyreg._reconstructor": _reconstructed,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, list, dict, tuple, complex, slice)},
    **{f"builtins.{name}": Inert for name in ("object", "int", "float", "str", "bool")},  # as arguments of others
    "builtins.bytes": encode,
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
    """Return what a name is bound to; None where it is refused."""
    if name in STAND_INS:
        return STAND_INS[name]
    kind = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", name) or re.fullmatch(r"torch\.(\w+)", name)
    if kind is not None and (kind[1] in TYPES or name.endswith("Storage") or _NOT_READ.match(kind[1])):
        return Number(kind[1])
    return Inert if _BESIDE.fullmatch(name) else None
