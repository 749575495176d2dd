"""VGG-19 with batch-norm as torchvision has it; its first linear layer folded, unless asked for whole."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from bdjax.errors import UserError
from bdjax.models.build import build
from bdjax.models.sizes import checked_depth, kept, scaled
from bdjax.nn.folded_linear import GRID, pool
from bdjax.nn.initial import constant, he_fan_out, normal
from bdjax.nn.layers import Conv, Linear, NormAct, Pass, dropout, tap
from bdjax.nn.pooling import max_pool
from bdjax.types import ArchSpec, Array, DataSpec, Loop, Model

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; each ends with a max-pooling
BASE, HIDDEN, DROPOUT = 64, 4096, 0.5
SMALLEST = 2 ** len(STAGES)  # pixels a side


def _stages(depth: int | None) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """(channels, convolutions, norms) of each stage; `features` counts convolution, norm, activation and pooling."""
    index = 0
    for channels, convolutions in STAGES:
        at = [index + 3 * i for i in range(convolutions)][: kept(convolutions, depth)]
        yield channels, tuple(f"features_{i}" for i in at), tuple(f"features_{i + 1}" for i in at)
        index += 3 * convolutions + 1


class _Vgg(nn.Module):
    classes: int
    width: int
    depth: int | None
    eps: float
    momentum: float
    dtype: Any
    lowering: str
    rate: float
    fold: bool

    @nn.compact
    def __call__(self, x: Array, run: Pass, start: str | None) -> Array:
        conv = functools.partial(Conv, lowering=self.lowering, dtype=self.dtype, use_bias=True, kernel_init=he_fan_out)
        linear = functools.partial(Linear, kernel_init=normal(0.01), bias_init=constant(0))
        if start is None:
            for s, (channels, convs, norms) in enumerate(_stages(self.depth), 1):
                for conv_name, norm_name in zip(convs, norms, strict=True):
                    x = conv(scaled(channels, self.width, BASE), 3, name=conv_name)(x, run)
                    x = NormAct(self.eps, self.momentum, name=norm_name)(x, run)
                x = tap(max_pool(x), f"stage{s}", run)
        if start != "head":
            x = pool(tap(x, "features", run), folded=self.fold)
        x = tap(x, "head", run)
        for layer in (0, 3):
            x = nn.relu(linear(scaled(HIDDEN, self.width, BASE), name=f"classifier_{layer}")(x))
            x = dropout(x, self.rate, run, f"classifier_{layer + 2}")
        return linear(self.classes, name="classifier_6")(x)


def _arch(depth: int | None, copies: float) -> ArchSpec:
    stages = list(_stages(depth))
    pairs = tuple((norm, conv) for _, convs, norms in stages for conv, norm in zip(convs, norms, strict=True))
    last = stages[-1][2]
    return ArchSpec(
        registered=tuple(item for norm, conv in pairs for item in (("conv", conv), ("norm", norm))),
        norms=tuple(norm for norm, _ in pairs),
        feeds=pairs,
        heads=("classifier_0", "classifier_3", "classifier_6"),
        stages=tuple(f"stage{s}" for s in range(1, len(STAGES) + 1)),
        plug_site=f"{last[-2]}/act" if len(last) > 1 else f"stage{len(STAGES) - 1}",  # the last convolution's input
        activations=tuple(f"{norm}/act" for norm, _ in pairs),
        copies=copies,
    )


@functools.lru_cache(maxsize=128)
def vgg19_bn(
    spec: DataSpec,
    width: int = 64,
    *,
    depth: int | None = None,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    dtype: Any = None,
    lowering: str = "native",
    loop: Loop = Loop(),
    drop: bool = True,
    fold: bool = True,
) -> Model:
    """Sixteen 3x3 convolutions in five stages, each convolution with bias, norm and ReLU, each stage with a 2x2 max-pooling;
    average pooling to 7x7 and three linear layers with ReLU and dropout between them.

    For 10 classes at width 64 and 32 pixels 38,958,922 parameters, with ``fold=False`` 139,622,218. The features are the output
    of the last max-pooling. The head's input, which a defense may prune, has one number per channel at 32 pixels and four at
    64; with ``fold=False`` the 49 pooled values per channel, position by position.

    Args:
      spec: data set facts; images of at least 32x32 pixels.
      width: channels of the first stage (64 in the papers); all others scale with it, the hidden layers' 4096 too.
      depth: at most so many convolutions per stage, under the names of the full network; None = all.
      norm_eps, norm_momentum, dtype, lowering, loop: those of every network, :func:`bdjax.models.build.build`.
      drop: with dropout (0.5), which train mode needs a key for.
      fold: keep of the first linear layer's weights what the map can tell apart (:mod:`bdjax.nn.folded_linear`): the same network
        and the same training under SGD.

    Raises:
      UserError: a width or depth below 1, or images that five halvings leave nothing of.

    Source: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
    Differs: with batch-norm and a pooling to 7x7 as torchvision's, which the backdoor benchmarks use; folded by default.
    """
    depth = checked_depth("vgg19_bn", width, depth, max(convolutions for _, convolutions in STAGES))
    height, wide, _ = spec.image_shape
    if min(height, wide) < SMALLEST:
        raise UserError(
            f"vgg19_bn halves images five times: it needs {SMALLEST}x{SMALLEST} pixels; given {height}x{wide} (your own "
            'images are scaled by "image_size" in dataset.json)'
        )
    how = dict(
        depth=depth,
        norm_eps=norm_eps,
        norm_momentum=norm_momentum,
        dtype=dtype,
        lowering=lowering,
        loop=loop,
        drop=drop,
        fold=fold,
    )
    rate, side = DROPOUT if drop else 0.0, min(height // SMALLEST, GRID)
    return build(
        _Vgg(spec.classes, width, depth, norm_eps, norm_momentum, dtype, lowering, rate, fold),
        arch=_arch(depth, GRID**2 / side**2 if fold else 1.0),
        factory=vgg19_bn,
        spec=spec,
        width=width,
        how=how,
    )
