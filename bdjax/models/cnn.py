"""A small convolutional network for tests, the quickstart and tables made on a CPU."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bdjax.models.build import build
from bdjax.nn.layers import Conv, Linear, NormAct, Pass, tap
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import ArchSpec, Array, DataSpec, Loop, Model

STAGES = 3


class _Cnn(nn.Module):
    classes: int
    width: int
    eps: float
    momentum: float
    dtype: Any
    lowering: str

    @nn.compact
    def __call__(self, x: Array, run: Pass, start: str | None) -> Array:
        if start is None:
            for i in range(1, STAGES + 1):
                stride = 1 if i == 1 else 2
                x = Conv(self.width * 2 ** (i - 1), 3, stride, self.lowering, self.dtype, name=f"conv{i}")(x, run)
                x = NormAct(self.eps, self.momentum, name=f"bn{i}")(x, run)
                x = tap(x, f"stage{i}", run)
        if start != "head":
            x = tap(x, "features", run)
            x = jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))
        return Linear(self.classes, name="linear")(tap(x, "head", run))


@functools.lru_cache(maxsize=128)
def cnn(
    spec: DataSpec,
    width: int = 16,
    *,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    dtype: Any = None,
    lowering: str = "native",
    loop: Loop = Loop(),
) -> Model:
    """Three 3x3 convolutions of ``width``, 2 ``width`` and 4 ``width`` channels, strides 1, 2, 2, each with batch-norm and ReLU,
    global average pooling and a linear layer.

    Args:
      spec: data set facts.
      width: channels of the first convolution.
      norm_eps, norm_momentum, dtype, lowering, loop: those of every network, :func:`bdjax.models.build.build`.

    Source: none; a plain network of this package, not one of the survey's architectures.
    """
    how = dict(norm_eps=norm_eps, norm_momentum=norm_momentum, dtype=dtype, lowering=lowering, loop=loop)
    pairs = tuple((f"bn{i}", f"conv{i}") for i in range(1, STAGES + 1))
    arch = ArchSpec(
        registered=tuple(item for norm, conv in pairs for item in (("conv", conv), ("norm", norm))),
        norms=tuple(norm for norm, _ in pairs),
        feeds=pairs,
        heads=("linear",),
        stages=tuple(f"stage{i}" for i in range(1, STAGES + 1)),
        plug_site="features",
        activations=tuple(f"{norm}/act" for norm, _ in pairs),
    )
    network = _Cnn(spec.classes, width, norm_eps, norm_momentum, dtype, lowering)
    return build(
        network,
        arch=arch,
        factory=cnn,
        spec=spec,
        width=width,
        how=how,
    )
