"""Input-aware's networks: an image in, a pattern or a mask of the same size out."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax.nn.convolution import lowering_here
from bdjax.nn.initial import Drawer
from bdjax.nn.layers import Conv, NormAct, Pass
from bdjax.nn.pooling import max_pool
from bdjax.types import Array, DataSpec, Float, Key, Variables

EPS, MOMENTUM = 1e-5, 0.05  # of the norms; momentum is the weight of the new value
SHRINK = 8  # three halvings and three doublings: sides must be multiples of it
NARROW = 2 + 1e-7  # the published code's divisor; equals 2 in float32
POOL, UP = "max_pool", "upsample"


class Generator(NamedTuple):
    """One of the two networks as pure functions (static)."""

    init: Callable[[Key], dict[str, Any]]  # (key) -> {"params", "batch_stats"}
    apply: Callable[..., tuple[Array, Mapping[str, Any]]]
    # (variables, images f[b h w c] in [0, 1], *, train=False, mask=None) -> (f[b h w outputs] in [0, 1], batch_stats)
    #   train: batch statistics over the rows with mask 1 (f[b]; None: all), and running ones that follow them
    pair: Callable[..., tuple[Array, Mapping[str, Any]]]
    # (variables, images f[2 b h w c], *, mask=None, moves=(1, 1)) -> (f[2 b h w outputs], batch_stats): two batches in train
    #   mode, each with its own statistics; the running ones follow the first `moves[0]` times, then the second `moves[1]` times


def generator(spec: DataSpec, outputs: int, width: int, double_tanh: bool) -> Generator:
    """A network of thirteen 3x3 convolutions in an hourglass of widths w, 2 w, 4 w, with batch-norm and ReLU.

    y = t / (2 + 1e-7) + 1/2 with t = tanh(z), or tanh(tanh(z)) where ``double_tanh``, and z the last norm's output.

    Args:
      spec: its mean and std standardise the input; sides must be multiples of 8.
      outputs: channels of the result: those of an image for a pattern, 1 for a mask.
      width: w, channels at full resolution; 32 in the paper.
      double_tanh: keeps y in [0.1192, 0.8808] instead of [0, 1].

    Source: T. A. Nguyen, A. T. Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, and its published code.
    Differs: the width can be changed, for runs on a CPU.
    """

    def network() -> _Network:
        return _Network(outputs, width, lowering_here())  # asked for when a program is traced, where the platform is known

    def shaped(key: Key, mutable: bool) -> Any:
        return network().init(key, jnp.zeros((1, *spec.image_shape)), Pass(), mutable=mutable)

    def apply(
        variables: Variables, images: Float[Array, "b h w c"], *, train: bool = False, mask: Float[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b h w _"], Any]:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        learned = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
        z, state = network().apply(
            learned, standardise(images.astype(dtype), spec), Pass(train=train, mask=mask), mutable=["batch_stats"]
        )
        t = jnp.tanh(jnp.tanh(z)) if double_tanh else jnp.tanh(z)
        return t / NARROW + 0.5, state["batch_stats"] if train else variables["batch_stats"]

    def pair(
        variables: Variables,
        images: Float[Array, "2 b h w c"],
        *,
        mask: Float[Array, " b"] | None = None,
        moves: tuple[int, int] = (1, 1),
    ) -> tuple[Float[Array, "2 b h w _"], Any]:
        # Side by side: three quarters of the program and of the time of one after the other, on a CPU (32x32 images, width 8).
        y, after = jax.vmap(lambda batch: apply(variables, batch, train=True, mask=mask))(images)

        def follow(old: Float[Array, " d"], new: Float[Array, "2 d"]) -> Float[Array, " d"]:
            value = old
            for number, times in enumerate(moves):
                share = new[number] - (1 - MOMENTUM) * old  # what this batch adds in one move
                for _ in range(times):
                    value = (1 - MOMENTUM) * value + share
            return value

        return y, jax.tree.map(follow, variables["batch_stats"], after)

    return Generator(Drawer(shaped), apply, pair)


def standardise(images: Float[Array, "b h w c"], spec: DataSpec) -> Float[Array, "b h w c"]:
    """(x - mean) / std per channel."""
    mean, std = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, -1) for v in (spec.mean, spec.std))
    return (images - mean) / std


def upsample(x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w d"]:
    """Twice the size, bilinear with half-pixel centres.

    y[2 i] = 3/4 x[i] + 1/4 x[i - 1] and y[2 i + 1] = 3/4 x[i] + 1/4 x[i + 1] along each axis, borders repeated.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        part = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
        before = jnp.concatenate([part(0, 1), part(0, size - 1)], axis)
        after = jnp.concatenate([part(1, size), part(size - 1, size)], axis)
        pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


class _Network(nn.Module):
    outputs: int
    width: int
    lowering: str

    @nn.compact
    def __call__(self, x: Array, run: Pass) -> Array:
        w, number = self.width, 0
        plan = (w, w, POOL, 2 * w, 2 * w, POOL, 4 * w, 4 * w, POOL, 4 * w, UP, 4 * w, 2 * w, UP, 2 * w, w, UP, w, self.outputs)
        for part in plan:
            if isinstance(part, str):
                x = max_pool(x) if part == POOL else upsample(x)
                continue
            number += 1
            x = Conv(part, 3, lowering=self.lowering, use_bias=True, bias_init=None, name=f"conv{number}")(x, run)
            act = nn.relu if number < sum(isinstance(p, int) for p in plan) else None
            x = NormAct(EPS, MOMENTUM, act, name=f"bn{number}")(x, run)
        return x
