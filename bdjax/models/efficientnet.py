"""EfficientNet-B3 as torchvision has it, for images of any size."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bdjax.models.build import build
from bdjax.models.inverted_residual import Block, Trunk, describe, run_trunk
from bdjax.models.sizes import checked_depth, kept, scaled
from bdjax.nn.initial import Law, constant
from bdjax.nn.layers import Linear, Pass, dropout, tap
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import Array, DataSpec, Loop, Model

STEM, LAST = 40, 1536
STAGES = (  # blocks, window, stride of the first, expansion, channels
    (2, 3, 1, 1, 24),
    (3, 3, 2, 6, 32),
    (3, 5, 2, 6, 48),
    (5, 3, 2, 6, 96),
    (5, 5, 1, 6, 136),
    (6, 5, 2, 6, 232),
    (2, 3, 1, 6, 384),
)
DROPOUT, STOCHASTIC_DEPTH = 0.3, 0.2


def _blocks(width: int, depth: int | None, drop: bool) -> tuple[Block, ...]:
    total, first = sum(blocks for blocks, *_ in STAGES), 0
    found, inputs = [], scaled(STEM, width, STEM)
    for s, (blocks, window, stride, expansion, channels) in enumerate(STAGES, 1):
        features, count = scaled(channels, width, STEM), kept(blocks, depth)
        for b in range(count):
            block = Block(
                f"features_{s}_{b}",
                window,
                1 if b else stride,
                expansion * inputs,
                features,
                max(1, inputs // 4),
                expands=expansion > 1,
                residual=b > 0,
                act=nn.silu,
                rate=STOCHASTIC_DEPTH * (first + b) / total if drop else 0.0,
                ends=f"stage{s}" if b == count - 1 else "",
            )
            found.append(block)
            inputs = features
        first += blocks
    return tuple(found)


def _uniform_fan_out(shape: tuple[int, ...]) -> Law:
    return Law("uniform", 1 / math.sqrt(shape[-1]))


class _EfficientNet(nn.Module):
    classes: int
    trunk: Trunk
    rate: float

    @nn.compact
    def __call__(self, x: Array, run: Pass, start: str | None) -> Array:
        if start is None:
            x = run_trunk(x, run, self.trunk)
        if start != "head":
            x = tap(x, "features", run)
            x = jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))
        x = dropout(tap(x, "head", run), self.rate, run, "classifier_0")
        return Linear(self.classes, _uniform_fan_out, constant(0), name="classifier_1")(x)


@functools.lru_cache(maxsize=128)
def efficientnet_b3(
    spec: DataSpec,
    width: int = 40,
    *,
    depth: int | None = None,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    dtype: Any = None,
    lowering: str = "native",
    loop: Loop = Loop(),
    drop: bool = True,
) -> Model:
    """A stem, seven stages of inverted residual blocks with squeeze-and-excitation and SiLU, a last 1x1 convolution, global
    average pooling, dropout, a linear layer; 10,711,602 parameters for 10 classes at width 40.

    Strides are those for photographs, also at 32 pixels: from stage 4 on maps have at most 2x2 positions. The linear layer's
    weights start in U(-1/sqrt(k), 1/sqrt(k)) with k the number of *classes*. A block's outputs are tapped at ``stage1`` to
    ``stage7``; the features are the output of the last convolution's activation.

    Args:
      spec: data set facts.
      width: channels of the stem (40 in the papers); all others scale with it.
      depth: at most so many blocks per stage, under the names of the full network; None = all.
      norm_eps, norm_momentum, dtype, lowering, loop: those of every network, :func:`bdjax.models.build.build`.
      drop: with dropout (0.3) and stochastic depth (block i of 26: 0.2 i / 26, in residual blocks), which train mode needs a
        key for.

    Raises:
      UserError: a width or depth below 1.

    Source: M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
    Differs: as torchvision's, which the backdoor benchmarks use: norms with eps 1e-5 and momentum 0.1, kernels drawn with the
      fan-out counted without groups.
    """
    depth = checked_depth("efficientnet_b3", width, depth, max(blocks for blocks, *_ in STAGES))
    how = dict(depth=depth, norm_eps=norm_eps, norm_momentum=norm_momentum, dtype=dtype, lowering=lowering, loop=loop, drop=drop)
    trunk = Trunk(
        stem=scaled(STEM, width, STEM),
        blocks=_blocks(width, depth, drop),
        last=scaled(LAST, width, STEM),
        position=len(STAGES) + 1,
        act=nn.silu,
        squeeze_act=nn.silu,
        squeeze_in_place=True,
        gate=nn.sigmoid,
        eps=norm_eps,
        momentum=norm_momentum,
        dtype=dtype,
        lowering=lowering,
    )
    return build(
        _EfficientNet(spec.classes, trunk, DROPOUT if drop else 0.0),
        arch=describe(trunk, ("classifier_1",)),
        factory=efficientnet_b3,
        spec=spec,
        width=width,
        how=how,
    )
