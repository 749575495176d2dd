"""The filters that Grad-Prune chooses among, and what is set to 0 together with each."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.nn.normalisation import row
from bdjax.types import ArchSpec, Array, Float, Masks

COMPANIONS = ("own_bn", "next_param")
SQUEEZE = ("fc1", "fc2")  # the convolutions of :class:`bdjax.nn.layers.SqueezeExcite`


class Filters(NamedTuple):
    """Output channels of convolutions, in the order of registration, numbered through (static)."""

    convs: tuple[str, ...]  # whose channels may be pruned
    sizes: tuple[int, ...]  # how many each has
    address: np.ndarray  # i32[F]: number of the filter's convolution among all that are registered
    channel: np.ndarray  # i32[F]
    zeroed: dict[str, tuple[str, ...]]  # {leaf: convolutions whose channel j takes entry j of its last axis along}


def filters(arch: ArchSpec, params: Any, companion: str, squeeze: bool) -> Filters:
    """The filters of a network.

    Args:
      arch: its addresses.
      params: its parameters, of which only names and shapes are read.
      companion: what loses entry j with filter j. "own_bn": the convolution's bias, and scale and bias of the norm in its module
        that it alone feeds. "next_param": the parameter registered next, be it a bias, a scale or another convolution's kernel;
        after the last convolution of a network that has neither, the weights of class j where there is a class j.
      squeeze: the convolutions of squeeze-and-excitation count too.
    """
    every = [address for kind, address in arch.registered if kind == "conv"]
    chosen = [conv for conv in every if squeeze or conv.rpartition("/")[2] not in SQUEEZE]
    sizes = [tree.get(params, conv)["kernel"].shape[-1] for conv in chosen]
    along = _own(arch, params) if companion == "own_bn" else _next(arch, params)
    zeroed: dict[str, tuple[str, ...]] = {}
    for conv in chosen:
        for leaf in (f"{conv}/kernel", *along[conv]):
            zeroed[leaf] = (*zeroed.get(leaf, ()), conv)
    numbers = np.asarray([every.index(conv) for conv in chosen], np.int32)
    channels = [np.arange(size, dtype=np.int32) for size in sizes]
    return Filters(tuple(chosen), tuple(sizes), np.repeat(numbers, sizes), np.concatenate(channels), zeroed)


def _own(arch: ArchSpec, params: Any) -> dict[str, tuple[str, ...]]:
    # A norm in another module than the convolution shares its input with somebody: a stem also feeds an identity.
    own = {conv: norm for norm, conv in arch.feeds if norm.rpartition("/")[0] == conv.rpartition("/")[0]}
    found = {}
    for kind, conv in arch.registered:
        if kind == "conv":
            bias = (f"{conv}/bias",) if "bias" in tree.get(params, conv) else ()
            found[conv] = (*bias, *((f"{own[conv]}/scale", f"{own[conv]}/bias") if conv in own else ()))
    return found


def _next(arch: ArchSpec, params: Any) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    after = (*arch.registered[1:], ("linear", arch.heads[0]))
    for (kind, conv), (next_kind, follower) in zip(arch.registered, after, strict=True):
        if kind == "conv":
            biased = "bias" in tree.get(params, conv)
            leaf = f"{follower}/{'scale' if next_kind == 'norm' else 'kernel'}"
            found[conv] = (f"{conv}/bias" if biased else leaf,)
    return found


def masks_of(table: Filters, keep: Float[Array, " F"]) -> Masks:
    """The flat keep vector as {convolution: f[d]}: 0 also where another filter takes this one along."""
    own = _by_conv(table, keep)
    return {conv: _factor(table.zeroed[f"{conv}/kernel"], own, size) for conv, size in zip(table.convs, table.sizes, strict=True)}


def flat(table: Filters, masks: Masks) -> Float[Array, " F"]:
    """One vector from vectors per convolution."""
    return jnp.concatenate([masks[conv] for conv in table.convs])


def pruned(table: Filters, params: Any, keep: Float[Array, " F"]) -> Any:
    """The parameters without the filters whose entry of ``keep`` is 0; all others stay bit by bit."""
    own, changed = _by_conv(table, keep), {}
    for path, convs in table.zeroed.items():
        leaf = tree.get(params, path)
        factor = row(_factor(convs, own, leaf.shape[-1]), leaf)
        changed[path] = jnp.where(factor > 0, leaf, jnp.zeros_like(leaf))
    return tree.replace(params, changed)


def _by_conv(table: Filters, keep: Float[Array, " F"]) -> Masks:
    return dict(zip(table.convs, jnp.split(keep, np.cumsum(table.sizes)[:-1]), strict=True))


def _factor(convs: tuple[str, ...], own: Masks, size: int) -> Float[Array, " size"]:
    """Keep factors of what goes with the filters of ``convs``; what has no filter (classes beyond them) is kept."""
    product = jnp.ones(size, next(iter(own.values())).dtype)
    for conv in convs:
        factor = own[conv][:size]
        product = product * jnp.pad(factor, (0, size - len(factor)), constant_values=1)
    return product
