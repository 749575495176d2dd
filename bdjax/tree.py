"""Parameter trees by address: read, replace, mask, compare.

An *address* is the path of a module ("layer2_0/bn1"), a *path* the address of a leaf ("layer2_0/bn1/scale"). Masks are flat
dictionaries {address: f[d]} of keep factors, 1 = kept and 0 = pruned, so that "prune", "compare" and "sweep the threshold" are
small functions that jit and vmap.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from bdjax.errors import unknown
from bdjax.types import Array, Masks

Tree = Mapping[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Array]:
    """All leaves as {path: leaf}, in the order of the tree."""
    flat: dict[str, Array] = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        if isinstance(child, Mapping):
            flat.update(flatten(child, path + "/"))
        else:
            flat[path] = child
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree whose leaves are ``flat``; the inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *modules, name = path.split("/")
        node = nested
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = leaf
    return nested


def get(tree: Tree, address: str) -> Any:
    """The subtree or leaf at ``address``.

    Raises:
      UserError: nothing lies there; names the nearest path.
    """
    node: Any = tree
    for name in address.split("/"):
        if not isinstance(node, Mapping) or name not in node:
            raise unknown("address", address, flatten(tree))
        node = node[name]
    return node


def replace(tree: Tree, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with the leaf or subtree at every address of ``values`` replaced; the addresses must exist."""
    copy: dict[str, Any] = dict(tree)
    for address, value in values.items():
        get(tree, address)
        head, _, rest = address.partition("/")
        copy[head] = replace(copy[head], {rest: value}) if rest else value
    return copy


def map_at(f: Callable[[Array], Array], tree: Tree, paths: tuple[str, ...]) -> dict[str, Any]:
    """A copy of ``tree`` with ``f`` applied to the leaves at ``paths``."""
    return replace(tree, {path: f(get(tree, path)) for path in paths})


def keep_below(scores: Mapping[str, Array], threshold: Array | Mapping[str, Array]) -> Masks:
    """0/1 masks that prune every channel whose score lies above the threshold (one for all, or one per address).

    Non-finite scores never prune: a NaN compares false, and an infinite score says that the measurement failed.
    """
    each = threshold if isinstance(threshold, Mapping) else dict.fromkeys(scores, threshold)
    return {
        address: jnp.where(jnp.isfinite(s) & (s > each[address]), jnp.zeros_like(s), jnp.ones_like(s))
        for address, s in scores.items()
    }


def keep_ranked(scores: Mapping[str, Array], pruned: Array) -> Masks:
    """0/1 masks that prune the ``pruned`` (i32[], may be traced) channels with the smallest scores of all addresses together.

    Ties break in the order of the addresses, then of the channels (a stable sort).
    """
    sizes = [s.shape[0] for s in scores.values()]
    flat = jnp.concatenate(list(scores.values()))
    rank = jnp.argsort(jnp.argsort(flat, stable=True), stable=True)
    keep = (rank >= pruned).astype(flat.dtype)
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    return {address: keep[o : o + n] for address, o, n in zip(scores, offsets, sizes, strict=True)}


def full_masks(params: Tree, addresses: tuple[str, ...], leaf: str = "scale") -> Masks:
    """Masks that keep everything, one factor per entry of the last axis of ``leaf`` at each address."""
    return {a: jnp.ones_like(get(params, f"{a}/{leaf}"), shape=get(params, f"{a}/{leaf}").shape[-1:]) for a in addresses}


def mask_norms(params: Tree, masks: Masks, *, bias: bool) -> dict[str, Any]:
    """Multiply the scale (and, if ``bias``, the bias) of every masked norm by its keep factors f[d]."""
    return scale_norms(params, masks, masks if bias else {})


def scale_norms(params: Tree, scales: Masks, biases: Masks) -> dict[str, Any]:
    """Multiply the scales of norms by factors f[d], and the biases by others; a norm that is not named stays."""
    factors = {f"{a}/{leaf}": f for leaf, each in (("scale", scales), ("bias", biases)) for a, f in each.items()}
    return replace(params, {path: get(params, path) * factor for path, factor in factors.items()})


def mask_outputs(params: Tree, masks: Masks) -> dict[str, Any]:
    """Multiply the output channels (last kernel axis) of every masked convolution or linear layer by its keep factors."""
    return replace(params, {f"{a}/kernel": _along(get(params, f"{a}/kernel"), keep, -1) for a, keep in masks.items()})


def scale_convs(params: Tree, factors: Masks) -> dict[str, Any]:
    """Multiply the outputs of convolutions by factors f[d]: the kernel's last axis and, where there is one, the bias."""
    biased = {a: factor for a, factor in factors.items() if "bias" in get(params, a)}
    biases = {f"{a}/bias": get(params, f"{a}/bias") * factor for a, factor in biased.items()}
    return replace(mask_outputs(params, factors), biases)


def mask_inputs(params: Tree, masks: Masks) -> dict[str, Any]:
    """Multiply the input channels (second to last kernel axis) of every masked layer by its keep factors."""
    return replace(params, {f"{a}/kernel": _along(get(params, f"{a}/kernel"), keep, -2) for a, keep in masks.items()})


def _along(kernel: Array, keep: Array, axis: int) -> Array:
    shape = [1] * kernel.ndim
    shape[axis] = keep.shape[0]
    return kernel * keep.reshape(shape)


def mask_and(a: Masks, b: Masks) -> Masks:
    """Keep what both masks keep (the product of their factors); an address that one of them lacks is kept by it."""
    both = {**a, **b}
    return {address: a[address] * b[address] if address in a and address in b else keep for address, keep in both.items()}


def pruned_count(masks: Masks) -> dict[str, Array]:
    """Number of channels with keep factor exactly 0 per address, i32[]."""
    return {a: jnp.sum(keep == 0, dtype=jnp.int32) for a, keep in masks.items()}


def sparsity(masks: Masks) -> dict[str, Array]:
    """Share of channels with keep factor exactly 0 per address, f[] in [0, 1]."""
    return {a: jnp.mean((keep == 0).astype(keep.dtype)) for a, keep in masks.items()}
