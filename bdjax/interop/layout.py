"""Which tensor of a PyTorch state dict is which leaf of our variables, and how one is laid out in the other.

Module names here are PyTorch's path components joined by "_", so one rule covers every network: names come from addresses, order
from the registration order, transposes from the rank. VGG's first linear layer is the exception (:mod:`bdjax.interop.pooled`).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bdjax import tree
from bdjax.errors import UserError
from bdjax.nn.folded_linear import GRID
from bdjax.types import Model

POOLED_HEADS = {"vgg19_bn": "classifier_0"}  # linear layers behind VGG's pooling to 7x7
STATISTICS = {"running_mean": "mean", "running_var": "var"}
COUNT = "num_batches_tracked"


class Tensor(NamedTuple):
    """One tensor of a state dict."""

    name: str  # "layer1.0.bn1.weight"
    shape: tuple[int, ...]  # in the state dict
    kind: str  # "conv" | "linear" | "pooled" | "vector" | "count"
    path: str  # of our leaf, "params/layer1_0/bn1/scale"; "" for a norm's count of batches, which has no leaf
    leaf: tuple[int, ...]  # shape of our leaf


def torch_name(address: str) -> str:
    """Return the PyTorch module at one of our addresses: ``layer2_0/shortcut_0`` is ``layer2.0.shortcut.0``."""
    return address.replace("/", ".").replace("_", ".")


@functools.lru_cache(maxsize=64)
def layout(model: Model) -> tuple[Tensor, ...]:
    """Return every tensor of a network's state dict, in PyTorch's order.

    Raises:
      UserError: the network holds leaves that a state dict has no place for.
    """
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    addresses = [address for _, address in model.arch.registered] + list(model.arch.heads)
    tensors = tuple(t for address in addresses for t in _module(model, shapes, address))
    left = sorted({f"{c}/{p}" for c in shapes for p in tree.flatten(shapes[c])} - {t.path for t in tensors})
    if left:
        raise UserError(f"{model.name} has leaves with no place in a state dict: {', '.join(left[:4])}")
    return tensors


def _module(model: Model, shapes: Any, address: str) -> Iterator[Tensor]:
    leaves, name = tree.get(shapes["params"], address), torch_name(address)

    def vector(suffix: str, leaf: str, collection: str = "params") -> Tensor:
        shape = tuple(tree.get(shapes[collection], f"{address}/{leaf}").shape)
        return Tensor(f"{name}.{suffix}", shape, "vector", f"{collection}/{address}/{leaf}", shape)

    if "scale" in leaves:
        yield vector("weight", "scale")
        yield vector("bias", "bias")
        for suffix, leaf in STATISTICS.items():
            yield vector(suffix, leaf, "batch_stats")
        yield Tensor(f"{name}.{COUNT}", (), "count", "", ())
        return
    shape = tuple(leaves["kernel"].shape)
    kind, theirs = _kernel(model, shapes, address, shape)
    yield Tensor(f"{name}.weight", theirs, kind, f"params/{address}/kernel", shape)
    if "bias" in leaves:
        yield vector("bias", "bias")


def _kernel(model: Model, shapes: Any, address: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    if len(shape) == 4:
        return "conv", (shape[3], shape[2], shape[0], shape[1])
    if POOLED_HEADS.get(model.name) == address:
        convs = [a for kind, a in model.arch.registered if kind == "conv"]
        channels = tree.get(shapes["params"], f"{convs[-1]}/kernel").shape[-1]
        return "pooled", (shape[1], channels * GRID**2)
    return "linear", (shape[1], shape[0])


def to_leaf(kind: str, value: np.ndarray) -> np.ndarray:
    """Return a tensor of a state dict as our leaf: conv OIHW -> HWIO, linear [out, in] -> [in, out], vectors as they are."""
    axes = {"conv": (2, 3, 1, 0), "linear": (1, 0)}.get(kind)
    return np.array(value if axes is None else value.transpose(axes), order="C")


def to_tensor(kind: str, leaf: np.ndarray) -> np.ndarray:
    """Return the inverse of :func:`to_leaf`."""
    axes = {"conv": (3, 2, 0, 1), "linear": (1, 0)}.get(kind)
    return np.array(leaf if axes is None else leaf.transpose(axes), order="C")
