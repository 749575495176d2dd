"""MobileNet-V3-Large as torchvision has it, for images of any size."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bdjax.models.build import build
from bdjax.models.inverted_residual import Block, Trunk, describe, run_trunk
from bdjax.models.sizes import checked_depth, kept, scaled
from bdjax.nn.activations import hard_sigmoid, hard_swish
from bdjax.nn.initial import constant, normal
from bdjax.nn.layers import Linear, Pass, dropout, tap
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import Array, DataSpec, Loop, Model

STEM, LAST, HIDDEN = 16, 960, 1280
RUNS = (  # channels; blocks: window, expanded channels, squeezed channels (0 = none), activation, stride
    (16, ((3, 16, 0, nn.relu, 1),)),
    (24, ((3, 64, 0, nn.relu, 2), (3, 72, 0, nn.relu, 1))),
    (40, ((5, 72, 24, nn.relu, 2), (5, 120, 32, nn.relu, 1), (5, 120, 32, nn.relu, 1))),
    (80, ((3, 240, 0, hard_swish, 2), (3, 200, 0, hard_swish, 1), (3, 184, 0, hard_swish, 1), (3, 184, 0, hard_swish, 1))),
    (112, ((3, 480, 120, hard_swish, 1), (3, 672, 168, hard_swish, 1))),
    (160, ((5, 672, 168, hard_swish, 2), (5, 960, 240, hard_swish, 1), (5, 960, 240, hard_swish, 1))),
)
BLOCKS = sum(len(blocks) for _, blocks in RUNS)
DROPOUT = 0.2


def _blocks(width: int, depth: int | None) -> tuple[Block, ...]:
    found: list[Block] = []
    before, index, stage = STEM, 0, 1
    for channels, blocks in RUNS:
        for b, (window, expanded, squeezed, act, stride) in enumerate(blocks):
            index += 1
            if b >= kept(len(blocks), depth):
                continue
            if stride == 2:  # the block before this one was the last of its resolution
                found[-1] = found[-1]._replace(ends=f"stage{stage}")
                stage += 1
            block = Block(
                f"features_{index}",
                window,
                stride,
                scaled(expanded, width, STEM),
                scaled(channels, width, STEM),
                scaled(squeezed, width, STEM) if squeezed else 0,
                expands=expanded != before,
                residual=stride == 1 and channels == before,
                act=act,
            )
            found.append(block)
            before = channels
    return (*found[:-1], found[-1]._replace(ends=f"stage{stage}"))


class _MobileNet(nn.Module):
    classes: int
    hidden: int
    trunk: Trunk
    rate: float

    @nn.compact
    def __call__(self, x: Array, run: Pass, start: str | None) -> Array:
        if start is None:
            x = run_trunk(x, run, self.trunk)
        if start != "head":
            x = tap(x, "features", run)
            x = jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))
        linear = functools.partial(Linear, kernel_init=normal(0.01), bias_init=constant(0))
        x = hard_swish(linear(self.hidden, name="classifier_0")(tap(x, "head", run)))
        return linear(self.classes, name="classifier_3")(dropout(x, self.rate, run, "classifier_2"))


@functools.lru_cache(maxsize=128)
def mobilenet_v3_large(
    spec: DataSpec,
    width: int = 16,
    *,
    depth: int | None = None,
    norm_eps: float = 1e-3,
    norm_momentum: float = 0.01,
    dtype: Any = None,
    lowering: str = "native",
    loop: Loop = Loop(),
    drop: bool = True,
) -> Model:
    """A stem, 15 inverted residual blocks with ReLU, later hard-swish, eight of them with squeeze-and-excitation, a last 1x1
    convolution, global average pooling, two linear layers; 4,214,842 parameters for 10 classes at width 16.

    Strides are those for photographs, also at 32 pixels. A stage ends where the next block halves the map: ``stage1`` to
    ``stage5`` are the outputs of blocks 1, 3, 6, 12 and 15. The features are the output of the last convolution's activation.

    Args:
      spec: data set facts.
      width: channels of the stem (16 in the papers); all others scale with it.
      depth: at most so many blocks of each number of channels (16, 24, 40, 80, 112, 160), under the names of the full network;
        None = all.
      norm_eps, norm_momentum, dtype, lowering, loop: those of every network, :func:`bdjax.models.build.build`.
      drop: with dropout (0.2) before the last layer, which train mode needs a key for.

    Raises:
      UserError: a width or depth below 1.

    Source: A. Howard et al., "Searching for MobileNetV3", ICCV 2019.
    Differs: as torchvision's, which the backdoor benchmarks use: kernels are drawn with the fan-out counted without groups, and
      the gradient where an activation bends is PyTorch's.
    """
    depth = checked_depth("mobilenet_v3_large", width, depth, max(len(blocks) for _, blocks in RUNS))
    how = dict(depth=depth, norm_eps=norm_eps, norm_momentum=norm_momentum, dtype=dtype, lowering=lowering, loop=loop, drop=drop)
    trunk = Trunk(
        stem=scaled(STEM, width, STEM),
        blocks=_blocks(width, depth),
        last=scaled(LAST, width, STEM),
        position=BLOCKS + 1,
        act=hard_swish,
        squeeze_act=nn.relu,
        squeeze_in_place=False,
        gate=hard_sigmoid,
        eps=norm_eps,
        momentum=norm_momentum,
        dtype=dtype,
        lowering=lowering,
    )
    return build(
        _MobileNet(spec.classes, scaled(HIDDEN, width, STEM), trunk, DROPOUT if drop else 0.0),
        arch=describe(trunk, ("classifier_0", "classifier_3")),
        factory=mobilenet_v3_large,
        spec=spec,
        width=width,
        how=how,
    )
