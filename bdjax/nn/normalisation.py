"""Batch-norm with a mask over rows, unbiased running variance and a gradient in closed form."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import Array, Float, Shaped

PART = 4  # every so many positions per axis are looked at for a first guess of the mean


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype of statistics and losses: float32 for narrower ones, float64 where a check runs in it."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def row(vector: Shaped[Any, " d"], x: Shaped[Any, "... d"]) -> Shaped[Any, "... d"]:
    """Return the vector with as many axes as ``x``, for broadcasting over all but the last."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def batch_norm(
    x: Float[Array, "b h w d"],
    mask: Shaped[Any, " b"] | None,
    running: Mapping[str, Float[Any, " d"]],
    scale: Float[Any, " d"],
    bias: Float[Any, " d"],
    eps: float,
    momentum: float,
) -> tuple[Float[Array, "b h w d"], dict[str, Float[Array, " d"]]]:
    """Normalise with the mean and biased variance of the rows with mask 1, and let the running statistics follow.

    The running variance takes the *unbiased* variance, n / (n - 1), as PyTorch's does; n = rows * positions. With no row at
    all the result is finite and meaningless: callers discard such a step. The gradient is the closed form, in reverse mode
    of any order; mask and running statistics are constants in it, the new running statistics too.

    Args:
      x: activations.
      mask: of 0 and 1, or None for all rows. All rows are normalised.
      running: "mean" and "var". Only the new running statistics depend on it: the moments of the batch are taken
        about a :func:`pivot` from the batch itself.
      scale, bias: parameters of the norm.
      eps: added to the variance.
      momentum: weight of the new value in the running statistics.

    Returns:
      Normalised activations, new running statistics.
    """
    dtype = at_least_float32(x.dtype)
    weight = None if mask is None else mask.astype(dtype).reshape(-1, *(1,) * (x.ndim - 1))
    y, mean, var = _batch_norm(eps, x, weight, scale.astype(dtype), bias.astype(dtype))
    n = _count(x, weight)
    unbiased = var * (n / jnp.maximum(n - 1, 1))
    follow = {"mean": lax.stop_gradient(mean), "var": lax.stop_gradient(unbiased)}
    return y, {k: (1 - momentum) * running[k] + momentum * follow[k].astype(running[k].dtype) for k in follow}


def _count(x: Float[Array, "b ..."], weight: Float[Any, "b ... 1"] | None) -> Float[Array, ""]:
    positions = math.prod(x.shape[1:-1])
    if weight is None:
        return jnp.asarray(x.shape[0] * positions, at_least_float32(x.dtype))
    return jnp.maximum(jnp.sum(weight), 1) * positions


def pivot(x: Float[Array, "b ... d"], weight: Float[Any, "b ... 1"] | None) -> Float[Array, " d"]:
    """Return the mean of a part of the batch, which is close to the mean of the batch, in at least float32.

    The part is every fourth position of every axis between rows and channels, in the rows that count. One position in 16 or
    more of an image f[b h w d] is in it, so by the inequality of Cauchy and Schwarz it lies within sqrt(15) standard deviations
    of the mean of the batch, whatever ``x`` holds. Second moments about it are at most 16 times the variance, so that one pass
    over ``x`` rounds the variance by at most 16 times as much as two passes would. Reading it takes 0 to 3 % of a training step
    (benchmarks/norm_moments.py). Where a channel is 0 everywhere it is exactly 0. It is a constant for every gradient: the
    moments do not depend on it but for rounding.

    Args:
      x: activations.
      weight: f[b 1 … 1] of 0 and 1, or None for all rows.
    """
    part = lax.stop_gradient(x)[(slice(None), *(slice(None, None, PART),) * (x.ndim - 2))].astype(at_least_float32(x.dtype))
    return jnp.sum(part if weight is None else part * weight, tuple(range(x.ndim - 1))) / _count(part, weight)


def _moments(x: Float[Array, "b ... d"], weight: Float[Any, "b ... 1"] | None) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Return mean and biased variance over the rows that count.

    Moments of float32 and wider are taken about the :func:`pivot`. Those of bfloat16 are taken about 0: that rounds the variance
    by some 2^-24 of the squared mean, less than the activations, rounded to 8 bits, have in them already, and an accelerator
    then sums while it convolves, where a pivot costs two further passes.
    """
    axes = tuple(range(x.ndim - 1))
    about = jnp.zeros(x.shape[-1], at_least_float32(x.dtype)) if x.dtype == jnp.bfloat16 else pivot(x, weight)
    away = x.astype(about.dtype) - row(about, x)
    weighted = away if weight is None else away * weight
    n = _count(x, weight)
    mean, square = jnp.sum(weighted, axes) / n, jnp.sum(weighted * away, axes) / n
    return about + mean, jnp.maximum(square - jnp.square(mean), 0)


def _batch_norm_forward(
    eps: float,
    x: Float[Array, "b h w d"],
    weight: Float[Any, "b 1 1 1"] | None,
    scale: Float[Any, " d"],
    bias: Float[Any, " d"],
) -> tuple[tuple[Float[Array, "b h w d"], Float[Array, " d"], Float[Array, " d"]], Any]:
    mean, var = _moments(x, weight)
    return (normalise(x, mean, var, scale, bias, eps), mean, var), (x, weight, scale, mean, var)


# The forward pass is plain code, not a call of `_batch_norm`: a second derivative goes through the moments it saves.
_batch_norm = jax.custom_vjp(lambda *arguments: _batch_norm_forward(*arguments)[0], nondiff_argnums=(0,))


def _batch_norm_backward(eps: float, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    x, weight, scale, mean, var = saved
    axes = tuple(range(x.ndim - 1))
    g = cotangent[0].astype(mean.dtype)  # nobody differentiates the statistics: `batch_norm` stops their gradient
    centred = x.astype(mean.dtype) - row(mean, x)
    inverse = lax.rsqrt(var + jnp.asarray(eps, var.dtype))
    to_bias = jnp.sum(g, axes)
    to_scale = jnp.sum(g * centred, axes) * inverse
    # dx = scale / std * (g - weight / n * (sum g + x_hat * sum (g x_hat))), every row in `g`, the rows that count in the rest
    n = _count(x, weight)
    through_mean, through_var, factor = to_bias / n, to_scale * inverse / n, scale * inverse
    if x.dtype == jnp.bfloat16:  # two factors and an offset per channel, as in `_moments`: fewer sums for every entry
        slope, offset = factor * through_var, factor * (through_mean - mean * through_var)
        through = x.astype(mean.dtype) * row(slope, x) + row(offset, x)
        to_x = row(factor, x) * g - (through if weight is None else through * weight)
    else:
        through = row(through_mean, x) + centred * row(through_var, x)
        to_x = row(factor, x) * (g - (through if weight is None else through * weight))
    no_weight = None if weight is None else jnp.zeros_like(weight)
    return to_x.astype(x.dtype), no_weight, to_scale, to_bias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def normalise(
    x: Float[Array, "*s d"],
    mean: Float[Any, " d"],
    var: Float[Any, " d"],
    scale: Float[Any, " d"],
    bias: Float[Any, " d"],
    eps: float,
) -> Float[Array, "*s d"]:
    """Return (x - mean) / sqrt(var + eps) * scale + bias over the last axis, in the dtype of ``x``.

    One multiplication and one addition in at least float32: a factor and an offset rounded to bfloat16 would shift whole
    channels by more than the rounding of the result.

    Args:
      x: activations.
      mean, var: statistics, of a batch or running.
      scale, bias: parameters of the norm.
      eps: added to the variance.
    """
    factor = scale * lax.rsqrt(var + jnp.asarray(eps, var.dtype))
    offset = bias - mean * factor
    wide = at_least_float32(x.dtype)
    y = x.astype(wide) * row(factor.astype(wide), x) + row(offset.astype(wide), x)
    return y.astype(x.dtype)
