"""A PyTorch state dict as our variables, and back, without PyTorch: {name: NumPy array} on one side, plain trees on the other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdjax import tree
from bdjax.errors import UserError
from bdjax.interop import names
from bdjax.interop.layout import Tensor, layout, to_leaf, to_tensor
from bdjax.interop.pooled import fold_weight, unfold_weight
from bdjax.interop.recognition import check_fit
from bdjax.nn.folded_linear import GRID
from bdjax.types import Model, Variables

_MASK, _NOISE = ".neuron_mask", (".neuron_noise", ".neuron_noise_bias")


class Imported(NamedTuple):
    """What a state dict becomes."""

    variables: dict[str, Any]  # {"params", "batch_stats"}, float32 on the host
    kept: dict[str, np.ndarray]  # what our variables have no place for, by its name in the state dict


def cleaned(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict with plain names (:func:`bdjax.interop.names.plain`), masks of norms multiplied in, noise dropped.

    Raises:
      UserError: a mask without a weight of its shape.
    """
    plain = {name: np.asarray(value) for name, value in names.plain(state).items()}
    masks = {name.removesuffix(_MASK): plain.pop(name) for name in list(plain) if name.endswith(_MASK)}
    plain = {name: value for name, value in plain.items() if not name.endswith(_NOISE)}
    for norm, mask in masks.items():
        weight = plain.get(f"{norm}.weight")
        if weight is None or weight.shape != mask.shape:
            shape = "missing" if weight is None else list(weight.shape)
            raise UserError(f"{norm}{_MASK} {list(mask.shape)} belongs to {norm}.weight, which is {shape}")
        plain[f"{norm}.weight"] = _float32(f"{norm}.weight", weight) * _float32(f"{norm}{_MASK}", mask)
    return plain


def from_state(model: Model, state: Mapping[str, np.ndarray]) -> Imported:
    """Return a PyTorch state dict as our variables.

    Args:
      model: the network, for the class count, width and image size it is to have.
      state: {name: tensor}, float32 (float16 and bfloat16 are widened, which loses nothing; float64 is rounded); a norm's count
        of batches may be absent. The order of the names does not matter.

    Returns:
      The variables and what they have no place for: counts of batches, and VGG's first linear weight where ours is folded.

    Raises:
      UserError: names or shapes that do not fit (wrong network, width or number of classes are named as such), integer
        weights, NaN or infinite values.

    Differs: saved masks of norms (``neuron_mask``) are multiplied into the weights, their noise is dropped. The reference
      evaluated such MobileNets with ε = 1e-5; here the network keeps its own ε unless ``model.rebuild(norm_eps=1e-5)`` is used.
    """
    plain = cleaned(state)
    check_fit(model, plain)
    leaves: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    for tensor in layout(model):
        if tensor.kind == "count":
            if tensor.name in plain:
                kept[tensor.name] = np.asarray(plain[tensor.name], np.int64).reshape(())
            continue
        value = _float32(tensor.name, plain[tensor.name])
        if tensor.kind == "pooled":
            leaf = fold_weight(value, tensor.leaf[0])
            if leaf.size < value.size:
                kept[tensor.name] = value
        else:
            leaf = to_leaf(tensor.kind, value)
        leaves[tensor.path] = leaf
    return Imported(tree.unflatten(leaves), kept)


def to_state(model: Model, variables: Variables, kept: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Return our variables as a PyTorch state dict, complete and in PyTorch's order.

    Args:
      model: the network.
      variables: of one member: {"params", "batch_stats"}, float32.
      kept: of :class:`Imported`, if the variables came from a state dict; None: counts of batches are 0, and what the data cannot
        see of VGG's first linear weight is 0.

    Returns:
      {name: float32 array; int64[] for counts of batches}. Importing it gives the variables back; after an import with ``kept``
      and no change, it equals what was imported, bit for bit.

    Raises:
      UserError: variables of another network or of several members, or with parts that a state dict has no place for.
    """
    extra = sorted(set(variables) - {"params", "batch_stats"})
    if extra:
        raise UserError(
            f"the network carries {', '.join(extra)}, which a PyTorch state dict has no place for; only plain ones export"
        )
    kept = kept or {}
    tensors = layout(model)
    strange = sorted(set(kept) - {t.name for t in tensors})
    if strange:
        raise UserError(f"kept tensors of another network: {', '.join(strange[:4])}")
    leaves = {
        f"{part}/{path}": leaf for part in ("params", "batch_stats") for path, leaf in tree.flatten(variables[part]).items()
    }
    unknown = sorted(set(leaves) - {t.path for t in tensors})
    if unknown:
        raise UserError(f"{model.name} has no {unknown[0]}")
    return {t.name: _export(model, t, leaves, kept.get(t.name)) for t in tensors}


def _export(model: Model, tensor: Tensor, leaves: Mapping[str, Any], kept: np.ndarray | None) -> np.ndarray:
    if tensor.kind == "count":
        return np.zeros((), np.int64) if kept is None else np.asarray(kept, np.int64).reshape(())
    if tensor.path not in leaves:
        raise UserError(f"the variables lack {tensor.path}, which {model.name} needs")
    leaf = np.asarray(leaves[tensor.path])
    if leaf.shape != tensor.leaf or leaf.dtype != np.float32:
        given, wanted = f"{leaf.dtype}{list(leaf.shape)}", f"float32{list(tensor.leaf)}"
        raise UserError(f"{tensor.path} is {given}, {model.name} (width {model.width}) of one member has {wanted}")
    if tensor.kind == "pooled":
        return unfold_weight(leaf, tensor.shape[1] // GRID**2, kept)
    return to_tensor(tensor.kind, leaf)


def _float32(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.name in ("float16", "bfloat16", "float64"):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and named below
            value = value.astype(np.float32)
    if value.dtype != np.float32:
        raise UserError(f"{name} is {value.dtype}; weights and statistics must be float32 (PyTorch: state[name].float())")
    if not np.isfinite(value).all():
        bad = int(value.size - np.isfinite(value).sum())
        raise UserError(f"{name} has {bad} NaN or infinite values of {value.size}: the network has diverged")
    return value
