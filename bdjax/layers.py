"""The layers that populations and defenses need: convolution, masked batch-norm, linear, taps.

Flax modules that take a :class:`Pass`, the state of one forward pass. Every tensor that has an address goes through
:func:`tap`, which applies a bound or a plug that the variables carry and then records it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bdjax.convolution import convolve
from bdjax.types import Array, Key

PLUG_EPS, PLUG_MOMENTUM = 1e-5, 0.1


@dataclasses.dataclass
class Pass:
    """One forward pass: how to run, what to record, and what was recorded so far."""

    train: bool = False
    plug_train: bool = False
    mask: Array | None = None  # f[b], 1 for rows that count in batch statistics
    key: Key | None = None  # dropout and stochastic depth
    record: Mapping[str, Callable[[Array, Array | None], Any] | None] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    plug: Mapping[str, Array] | None = None
    plug_stats: Mapping[str, Array] | None = None
    plug_site: str = ""
    taps: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: list[str] = dataclasses.field(default_factory=list)


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which statistics and losses are computed: float32 for narrower ones, float64 where a check runs in it."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def tap(x: Array, address: str, run: Pass) -> Array:
    """Give the tensor f[b … d] its address: apply what the variables carry for it, record it if asked, return it."""
    if address in run.bounds:
        x = jnp.minimum(x, run.bounds[address].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)))
    if run.plug is not None and address == run.plug_site:
        x = _plug(x, run)
    run.seen.append(address)
    if address in run.record:
        measure = run.record[address]
        run.taps[address] = x if measure is None else measure(x, run.mask)
    return x


def _plug(x: Array, run: Pass) -> Array:
    """Neural Polarizer's insert: a 1x1 convolution and a norm, f[b h w d] -> f[b h w d]."""
    assert run.plug is not None and run.plug_stats is not None
    x = jnp.einsum("bhwc,cd->bhwd", x, run.plug["kernel"].reshape(x.shape[-1], -1).astype(x.dtype))
    scale, bias = run.plug["scale"], run.plug["bias"]
    if not run.plug_train:
        return normalise(x, run.plug_stats["mean"], run.plug_stats["var"], scale, bias, PLUG_EPS)
    x, run.plug_stats = batch_norm(x, run.mask, run.plug_stats, scale, bias, PLUG_EPS, PLUG_MOMENTUM)
    return x


def batch_norm(
    x: Array, mask: Array | None, running: Mapping[str, Array], scale: Array, bias: Array, eps: float, momentum: float
) -> tuple[Array, dict[str, Array]]:
    """Normalise with the mean and biased variance of the rows with mask 1, and let the running statistics follow.

    The running variance takes the *unbiased* variance, n / (n - 1), as PyTorch's does; n = rows * positions. With no row at
    all the result is finite and meaningless: callers discard such a step. The gradient is the closed form, in reverse mode
    of any order; mask and running statistics are constants in it, the new running statistics too.

    Args:
      x: f[b h w d].
      mask: f[b] of 0 and 1, or None for all rows. All rows are normalised.
      running: {"mean": f[d], "var": f[d]}. Its mean is also where the moments are taken about, which keeps their
        precision in one pass over ``x``.
      scale: f[d].
      bias: f[d].
      eps: added to the variance.
      momentum: weight of the new value in the running statistics.

    Returns:
      f[b h w d], new running statistics.
    """
    dtype = at_least_float32(x.dtype)
    shift = lax.stop_gradient(running["mean"]).astype(dtype)
    weight = None if mask is None else mask.astype(dtype).reshape(-1, *(1,) * (x.ndim - 1))
    y, mean, var = _batch_norm(eps, x, weight, shift, scale.astype(dtype), bias.astype(dtype))
    n = _count(x, weight)
    unbiased = var * (n / jnp.maximum(n - 1, 1))
    follow = {"mean": lax.stop_gradient(mean), "var": lax.stop_gradient(unbiased)}
    return y, {k: (1 - momentum) * running[k] + momentum * follow[k].astype(running[k].dtype) for k in follow}


def _count(x: Array, weight: Array | None) -> Array:
    positions = math.prod(x.shape[1:-1])
    if weight is None:
        return jnp.asarray(x.shape[0] * positions, at_least_float32(x.dtype))
    return jnp.maximum(jnp.sum(weight), 1) * positions


def _moments(x: Array, weight: Array | None, shift: Array) -> tuple[Array, Array]:
    """Mean and biased variance over the rows that count, from the moments about ``shift`` f[d]."""
    axes = tuple(range(x.ndim - 1))
    away = x.astype(shift.dtype) - _row(shift, x)
    weighted = away if weight is None else away * weight
    n = _count(x, weight)
    mean, square = jnp.sum(weighted, axes) / n, jnp.sum(weighted * away, axes) / n
    return shift + mean, jnp.maximum(square - jnp.square(mean), 0)


def _row(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _batch_norm_forward(
    eps: float, x: Array, weight: Array | None, shift: Array, scale: Array, bias: Array
) -> tuple[tuple[Array, Array, Array], Any]:
    mean, var = _moments(x, weight, shift)
    return (normalise(x, mean, var, scale, bias, eps), mean, var), (x, weight, shift, scale, mean, var)


# The forward pass is plain code, not a call of `_batch_norm`: a second derivative goes through the moments it saves.
_batch_norm = jax.custom_vjp(lambda *arguments: _batch_norm_forward(*arguments)[0], nondiff_argnums=(0,))


def _batch_norm_backward(eps: float, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    x, weight, shift, scale, mean, var = saved
    axes = tuple(range(x.ndim - 1))
    g = cotangent[0].astype(mean.dtype)  # nobody differentiates the statistics: `batch_norm` stops their gradient
    centred = x.astype(mean.dtype) - _row(mean, x)
    inverse = lax.rsqrt(var + jnp.asarray(eps, var.dtype))
    to_bias = jnp.sum(g, axes)
    to_scale = jnp.sum(g * centred, axes) * inverse
    # dx = scale / std * (g - weight / n * (sum g + x_hat * sum (g x_hat))), every row in `g`, the rows that count in the rest
    n = _count(x, weight)
    through_mean, through_var = to_bias / n, to_scale * inverse / n
    through = _row(through_mean, x) + centred * _row(through_var, x)
    to_x = _row(scale * inverse, x) * (g - (through if weight is None else through * weight))
    no_weight = None if weight is None else jnp.zeros_like(weight)
    return to_x.astype(x.dtype), no_weight, jnp.zeros_like(shift), to_scale, to_bias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, in ``x``'s dtype.

    One multiplication and one addition in at least float32: a factor and an offset rounded to bfloat16 would shift whole
    channels, by up to ten times the rounding of the result.
    """
    factor = scale * lax.rsqrt(var + jnp.asarray(eps, var.dtype))
    offset = bias - mean * factor
    wide = at_least_float32(x.dtype)
    y = x.astype(wide) * _row(factor.astype(wide), x) + _row(offset.astype(wide), x)
    return y.astype(x.dtype)


def uniform_fan_in(key: Key, shape: tuple[int, ...]) -> Array:
    """U(-b, b) with b = 1 / sqrt(fan in), PyTorch's default for convolutions and linear layers; kernels are [… in, out]."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class Conv(nn.Module):
    """Convolution without bias; its output has the module's path as address."""

    features: int
    window: int
    stride: int = 1
    lowering: str = "native"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, run: Pass) -> Array:
        kernel = self.param("kernel", uniform_fan_in, (self.window, self.window, x.shape[-1], self.features))
        dtype = self.dtype or kernel.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        y = convolve(x, kernel, stride=self.stride, padding=self.window // 2, lowering=self.lowering)
        return tap(y, "/".join(self.path), run)


class NormRelu(nn.Module):
    """Batch-norm over the rows that count, then ReLU; taps at ``<path>/in``, ``<path>`` (the norm) and ``<path>/act``."""

    eps: float
    momentum: float

    @nn.compact
    def __call__(self, x: Array, run: Pass) -> Array:
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        stats_mean = self.variable("batch_stats", "mean", jnp.zeros, (d,))
        stats_var = self.variable("batch_stats", "var", jnp.ones, (d,))
        address = "/".join(self.path)
        x = tap(x, f"{address}/in", run)
        if run.train:
            running = {"mean": stats_mean.value, "var": stats_var.value}
            x, new = batch_norm(x, run.mask, running, scale, bias, self.eps, self.momentum)
            stats_mean.value, stats_var.value = new["mean"], new["var"]
        else:
            x = normalise(x, stats_mean.value, stats_var.value, scale, bias, self.eps)
        x = tap(x, address, run)
        return tap(nn.relu(x), f"{address}/act", run)


class Linear(nn.Module):
    """Linear layer with bias, computed in the parameters' dtype."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", uniform_fan_in, (x.shape[-1], self.features))
        bias = self.param("bias", lambda key, shape: uniform_fan_in(key, (x.shape[-1], *shape))[0], (self.features,))
        return x.astype(kernel.dtype) @ kernel + bias[None]
