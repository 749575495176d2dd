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
    mean, var = run.plug_stats["mean"], run.plug_stats["var"]
    if run.plug_train:
        mean, var, run.plug_stats = batch_statistics(x, run.mask, run.plug_stats, PLUG_MOMENTUM)
    return normalise(x, mean, var, run.plug["scale"], run.plug["bias"], PLUG_EPS)


def batch_statistics(
    x: Array, mask: Array | None, running: Mapping[str, Array], momentum: float
) -> tuple[Array, Array, dict[str, Array]]:
    """Mean and biased variance over the rows with mask 1, and the running statistics that follow.

    The running variance takes the *unbiased* variance, n / (n - 1), as PyTorch's does; n = rows * positions. With no row at
    all the statistics are finite and meaningless: callers discard such a step.

    Args:
      x: f[b h w d].
      mask: f[b] of 0 and 1, or None for all rows.
      running: {"mean": f[d], "var": f[d]}.
      momentum: weight of the new value in the running statistics.

    Returns:
      mean f[d], var f[d], new running statistics.
    """
    x = x.astype(at_least_float32(x.dtype))
    axes = tuple(range(x.ndim - 1))
    positions = math.prod(x.shape[1:-1])
    if mask is None:
        n = jnp.asarray(x.shape[0] * positions, x.dtype)
        mean = jnp.mean(x, axes)
        var = jnp.mean(jnp.square(x - mean.reshape((1,) * len(axes) + (-1,))), axes)
    else:
        weight = mask.astype(x.dtype).reshape(-1, *(1,) * len(axes))
        n = jnp.maximum(jnp.sum(mask.astype(x.dtype)), 1) * positions
        mean = jnp.sum(x * weight, axes) / n
        var = jnp.sum(jnp.square(x - mean.reshape((1,) * len(axes) + (-1,))) * weight, axes) / n
    unbiased = var * (n / jnp.maximum(n - 1, 1))
    new = {
        "mean": (1 - momentum) * running["mean"] + momentum * lax.stop_gradient(mean).astype(running["mean"].dtype),
        "var": (1 - momentum) * running["var"] + momentum * lax.stop_gradient(unbiased).astype(running["var"].dtype),
    }
    return mean, var, new


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, as one multiplication and one addition."""
    factor = scale * lax.rsqrt(var + jnp.asarray(eps, var.dtype))
    offset = bias - mean * factor
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.astype(x.dtype).reshape(shape) + offset.astype(x.dtype).reshape(shape)


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
        mean, var = stats_mean.value, stats_var.value
        if run.train:
            running = {"mean": stats_mean.value, "var": stats_var.value}
            mean, var, new = batch_statistics(x, run.mask, running, self.momentum)
            stats_mean.value, stats_var.value = new["mean"], new["var"]
        x = tap(normalise(x, mean, var, scale, bias, self.eps), address, run)
        return tap(nn.relu(x), f"{address}/act", run)


class Linear(nn.Module):
    """Linear layer with bias, computed in the parameters' dtype."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", uniform_fan_in, (x.shape[-1], self.features))
        bias = self.param("bias", lambda key, shape: uniform_fan_in(key, (x.shape[-1], *shape))[0], (self.features,))
        return x.astype(kernel.dtype) @ kernel + bias[None]
