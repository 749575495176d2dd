"""The small ``cnn`` in eval mode with what a defense may put into it, bounds or a plug, written out without taps or masks."""

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import CleanSet
from tests.defenses.plain_network import EPS, LAYERS


def widened(hyper):
    """Hyper-parameters in 64-bit numbers."""
    return jax.tree.map(lambda x: jnp.asarray(float(x), jnp.float64), hyper)


def inserted(spec, variables, images, *, bounds=None, plug=None, plug_stats=None):
    """(logits f[b k], {layer: its activation}, mean and unbiased variance at the plug's norm).

    Args:
      bounds: {layer: f[d]}, what its activations are cut to; a bound below 0 acts as 0.
      plug: {"kernel", "scale", "bias"} of the layer before the pooling.
      plug_stats: {"mean", "var"} of its norm; None = those of the batch.
    """
    params, running = variables["params"], variables["batch_stats"]
    x = (images - jnp.asarray(spec.mean).reshape(1, 1, 1, 3)) / jnp.asarray(spec.std).reshape(1, 1, 1, 3)
    activations, measured = {}, None
    for layer, stride in LAYERS:
        kernel, norm, seen = params[f"conv{layer}"]["kernel"], params[f"bn{layer}"], running[f"bn{layer}"]
        x = lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        slope = norm["scale"] / jnp.sqrt(seen["var"] + EPS)
        x = (x - _wide(seen["mean"])) * _wide(slope) + _wide(norm["bias"])
        x = jnp.where(x > 0, x, 0.0)
        activations[layer] = x
        if bounds is not None:
            limit = _wide(jnp.where(bounds[layer] > 0, bounds[layer], 0.0))
            x = jnp.where(x < limit, x, limit)
    if plug is not None:
        x = jnp.einsum("bhwc,cd->bhwd", x, plug["kernel"][0, 0])
        n = x.shape[0] * x.shape[1] * x.shape[2]
        mean = x.sum((0, 1, 2)) / n
        square = ((x - _wide(mean)) ** 2).sum((0, 1, 2))
        measured = {"mean": mean, "var": square / (n - 1)}
        mean, variance = (mean, square / n) if plug_stats is None else (plug_stats["mean"], plug_stats["var"])
        x = (x - _wide(mean)) / jnp.sqrt(_wide(variance) + EPS) * _wide(plug["scale"]) + _wide(plug["bias"])
    logits = x.mean((1, 2)) @ params["linear"]["kernel"] + params["linear"]["bias"][None]
    return logits, activations, measured


def rows_of(images, labels):
    """A clean set of these rows, all of them for training."""
    ones = jnp.ones(len(labels), jnp.int8)
    return CleanSet(jnp.asarray(images), jnp.asarray(labels), ones, jnp.int32(len(labels)))


def _wide(vector):
    return vector.reshape(1, 1, 1, -1)
