"""The layers that populations and defenses need: convolution, masked batch-norm, squeeze-excite, linear, dropout, taps.

Flax modules that take a :class:`Pass`, the state of one forward pass. Every tensor that has an address goes through
:func:`tap`, which applies a bound or a plug that the variables carry and then records it.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.nn.convolution import convolve
from bdjax.nn.initial import Rule, constant, he_fan_out, parameter, uniform_fan_in
from bdjax.nn.normalisation import at_least_float32, batch_norm, normalise, row
from bdjax.types import Array, Float, Key, Shaped

PLUG_EPS, PLUG_MOMENTUM = 1e-5, 0.1


@dataclasses.dataclass
class Pass:
    """One forward pass: how to run, what to record, and what was recorded so far."""

    train: bool = False
    plug_train: bool = False
    shaping: bool = False  # only the parameters' shapes are asked for: layers that keep a tensor's shape may be left out
    mask: Shaped[Any, " b"] | None = None  # 1 for rows that count in batch statistics
    key: Key | None = None  # dropout and stochastic depth
    record: Mapping[str, Callable[[Array, Array | None], Any] | None] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, Float[Any, " _"]] = dataclasses.field(default_factory=dict)
    plug: Mapping[str, Float[Any, "..."]] | None = None
    plug_stats: Mapping[str, Float[Any, " _"]] | None = None
    plug_site: str = ""
    taps: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: list[str] = dataclasses.field(default_factory=list)


def tap(x: Float[Any, "b *s d"], address: str, run: Pass) -> Float[Any, "b *s d"]:
    """Give the tensor its address: apply what the variables carry for it, record it if asked, return it.

    A bound Z per channel cuts the tensor to min(x, max(Z, 0)): one below 0 acts as 0, and its gradient is 0. Behind a ReLU that
    is what a cut to min(x, Z) before the ReLU gives, which takes negative values back to 0.
    """
    if address in run.bounds:
        x = jnp.minimum(x, row(nn.relu(run.bounds[address].astype(x.dtype)), x))
    if run.plug is not None and address == run.plug_site:
        x = _plug(x, run)
    run.seen.append(address)
    if address in run.record:
        measure = run.record[address]
        run.taps[address] = x if measure is None else measure(x, run.mask)
    return x


def _plug(x: Float[Array, "b h w d"], run: Pass) -> Float[Array, "b h w d"]:
    """Neural Polarizer's insert: a 1x1 convolution and a norm."""
    assert run.plug is not None and run.plug_stats is not None
    x = jnp.einsum("bhwc,cd->bhwd", x, run.plug["kernel"].reshape(x.shape[-1], -1).astype(x.dtype))
    scale, bias = run.plug["scale"], run.plug["bias"]
    if not run.plug_train:
        return normalise(x, run.plug_stats["mean"], run.plug_stats["var"], scale, bias, PLUG_EPS)
    x, run.plug_stats = batch_norm(x, run.mask, run.plug_stats, scale, bias, PLUG_EPS, PLUG_MOMENTUM)
    return x


_ZERO = constant(0)


class Conv(nn.Module):
    """Convolution with padding ``window // 2``; its output has the module's path as address.

    Its kernel is f[window window c features], its bias f[features].
    ``bias_init`` None draws the bias as PyTorch does, from U(-b, b) with b = 1 / sqrt(window² inputs).
    """

    features: int
    window: int
    stride: int = 1
    lowering: str = "native"
    dtype: Any = None
    use_bias: bool = False
    kernel_init: Rule = uniform_fan_in
    bias_init: Rule | None = _ZERO

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], run: Pass) -> Float[Array, "b _ _ features"]:
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        dtype = self.dtype or kernel.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        y = convolve(x, kernel, stride=self.stride, padding=self.window // 2, lowering=self.lowering)
        if self.use_bias:
            init = self.bias_init or (lambda _: uniform_fan_in(shape))
            y = y + row(parameter(self, "bias", init, (self.features,)).astype(dtype), y)
        return tap(y, "/".join(self.path), run)


class NormAct(nn.Module):
    """Batch-norm over the rows that count, then an activation if there is one.

    Scale, bias and running statistics are f[d].
    Taps at ``<path>/in``, ``<path>`` (the norm) and, with an activation, ``<path>/act``.
    """

    eps: float
    momentum: float
    act: Callable[[Array], Array] | None = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], run: Pass) -> Float[Array, "b h w d"]:
        d = x.shape[-1]
        scale = parameter(self, "scale", constant(1), (d,))
        bias = parameter(self, "bias", constant(0), (d,))
        stats_mean = self.variable("batch_stats", "mean", jnp.zeros, (d,))
        stats_var = self.variable("batch_stats", "var", jnp.ones, (d,))
        if run.shaping:
            return x
        address = "/".join(self.path)
        x = tap(x, f"{address}/in", run)
        if run.train:
            running = {"mean": stats_mean.value, "var": stats_var.value}
            x, new = batch_norm(x, run.mask, running, scale, bias, self.eps, self.momentum)
            stats_mean.value, stats_var.value = new["mean"], new["var"]
        else:
            x = normalise(x, stats_mean.value, stats_var.value, scale, bias, self.eps)
        x = tap(x, address, run)
        return x if self.act is None else tap(self.act(x), f"{address}/act", run)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that sees the mean of all: ``x gate(fc2(act(fc1(mean x))))``.

    Both layers are 1x1, with bias.

    Taps at ``<path>/fc1``, ``<path>/fc1/act`` and ``<path>/fc2``, f[b 1 1 d].

    Source: J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    squeeze: int
    act: Callable[[Array], Array]
    gate: Callable[[Array], Array]
    lowering: str = "native"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], run: Pass) -> Float[Array, "b h w d"]:
        layer = functools.partial(Conv, window=1, lowering=self.lowering, dtype=self.dtype, use_bias=True, kernel_init=he_fan_out)
        y = jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype), keepdims=True).astype(x.dtype)
        y = layer(self.squeeze, name="fc1")(y, run)
        y = tap(self.act(y), "/".join((*self.path, "fc1", "act")), run)
        return x * self.gate(layer(x.shape[-1], name="fc2")(y, run))


class Linear(nn.Module):
    """Linear layer with bias, computed in the dtype of its parameters: f[c features] and f[features].

    ``bias_init`` None draws the bias as PyTorch does, from U(-b, b) with b = 1 / sqrt(inputs).
    """

    features: int
    kernel_init: Rule = uniform_fan_in
    bias_init: Rule | None = None

    @nn.compact
    def __call__(self, x: Float[Any, "b c"]) -> Float[Array, "b features"]:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        init = self.bias_init or (lambda shape: uniform_fan_in((x.shape[-1], *shape)))
        bias = parameter(self, "bias", init, (self.features,))
        return x.astype(kernel.dtype) @ kernel + bias[None]


def dropout(x: Float[Array, "*s"], rate: float, run: Pass, site: str) -> Float[Array, "*s"]:
    """In train mode, each number is 0 with probability ``rate`` and divided by 1 - ``rate`` otherwise.

    Args:
      x: activations.
      rate: in [0, 1); static.
      run: its key draws.
      site: address of the place, which gives it draws of its own whatever other layers a network has.

    Raises:
      UserError: train mode without a key.

    Source: N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout: A Simple Way to Prevent Neural
      Networks from Overfitting", JMLR 15, 2014.
    """
    return _kept(x, rate, run, site, x.shape)


def stochastic_depth(x: Float[Array, " b *s"], rate: float, run: Pass, site: str) -> Float[Array, " b *s"]:
    """In train mode, each sample of a residual branch is 0 with probability ``rate``, else divided by 1 - ``rate``.

    Args and errors are those of :func:`dropout`.

    Source: G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.
    """
    return _kept(x, rate, run, site, (x.shape[0], *(1,) * (x.ndim - 1)))


def _kept(x: Float[Array, "*s"], rate: float, run: Pass, site: str, shape: tuple[int, ...]) -> Float[Array, "*s"]:
    if not run.train or rate == 0:
        return x
    if run.key is None:
        raise UserError(f"{site} draws at random in train mode: give apply a key, or build the network with drop=False")
    key = jax.random.fold_in(run.key, zlib.crc32(site.encode()))
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))
