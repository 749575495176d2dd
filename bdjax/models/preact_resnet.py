"""PreActResNet-18, the residual network of the benchmark."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bdjax.models.build import build
from bdjax.models.sizes import checked_depth, kept
from bdjax.nn.layers import Conv, Linear, NormAct, Pass, tap
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import ArchSpec, Array, DataSpec, Loop, Model

STRIDES, BLOCKS = (1, 2, 2, 2), 2


class _Block(nn.Module):
    features: int
    stride: int
    eps: float
    momentum: float
    dtype: Any
    lowering: str

    @nn.compact
    def __call__(self, x: Array, run: Pass) -> Array:
        conv = functools.partial(Conv, lowering=self.lowering, dtype=self.dtype)
        a = NormAct(self.eps, self.momentum, name="bn1")(x, run)
        y = conv(self.features, 3, self.stride, name="conv1")(a, run)
        y = NormAct(self.eps, self.momentum, name="bn2")(y, run)
        y = conv(self.features, 3, 1, name="conv2")(y, run)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, name="shortcut_0")(a, run)
        return tap(y + x, "/".join(self.path), run)


class _PreActResNet(nn.Module):
    classes: int
    width: int
    depth: int | None
    eps: float
    momentum: float
    dtype: Any
    lowering: str

    @nn.compact
    def __call__(self, x: Array, run: Pass, start: str | None) -> Array:
        if start is None:
            x = Conv(self.width, 3, 1, self.lowering, self.dtype, name="conv1")(x, run)
            for s, stride in enumerate(STRIDES):
                for b in range(kept(BLOCKS, self.depth)):
                    block = _Block(
                        self.width * 2**s,
                        stride if b == 0 else 1,
                        self.eps,
                        self.momentum,
                        self.dtype,
                        self.lowering,
                        name=f"layer{s + 1}_{b}",
                    )
                    x = block(x, run)
                x = tap(x, f"stage{s + 1}", run)
        if start != "head":
            x = tap(x, "features", run)
            x = jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))
        return Linear(self.classes, name="linear")(tap(x, "head", run))


def _arch(depth: int | None) -> ArchSpec:
    registered, norms, feeds, in_place = [("conv", "conv1")], [], [], []
    for s, stride in enumerate(STRIDES):
        for b in range(kept(BLOCKS, depth)):
            block = f"layer{s + 1}_{b}"
            registered += [
                ("norm", f"{block}/bn1"),
                ("conv", f"{block}/conv1"),
                ("norm", f"{block}/bn2"),
                ("conv", f"{block}/conv2"),
            ]
            if b == 0 and stride != 1:
                registered.append(("conv", f"{block}/shortcut_0"))
            norms += [f"{block}/bn1", f"{block}/bn2"]
            feeds.append((f"{block}/bn2", f"{block}/conv1"))
            in_place.append((f"{block}/conv2", block))  # the shortcut is added to the output where it lies
    feeds.append(("layer1_0/bn1", "conv1"))  # every other bn1 normalises a residual sum
    return ArchSpec(
        registered=tuple(registered),
        norms=tuple(norms),
        feeds=tuple(feeds),
        heads=("linear",),
        stages=tuple(f"stage{s + 1}" for s in range(len(STRIDES))),
        plug_site=f"{norms[-2]}/act",  # the input of the last block's convolutions, not of its identity shortcut
        activations=tuple(f"{norm}/act" for norm in norms),
        in_place=tuple(in_place),
    )


@functools.lru_cache(maxsize=128)
def preactresnet18(
    spec: DataSpec,
    width: int = 64,
    *,
    depth: int | None = None,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    dtype: Any = None,
    lowering: str = "native",
    loop: Loop = Loop(),
) -> Model:
    """Residual network with pre-activation: a 3x3 stem, four stages of two blocks with ``width`` to 8 ``width`` channels and
    strides 1, 2, 2, 2, global average pooling, a linear layer; 11,171,146 parameters for 10 classes at width 64.

    A projection takes the *activated* input of its block, has no norm and no bias, and exists where stride or width change;
    there is no norm and no activation after the last block, so pooled features have any sign.

    Args:
      spec: data set facts.
      width: channels of the first stage (64 in the papers).
      depth: at most so many blocks per stage, under the names of the full network; None = all.
      norm_eps, norm_momentum, dtype, lowering, loop: those of every network, :func:`bdjax.models.build.build`.

    Raises:
      UserError: a width or depth below 1.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016.
    Differs: no norm and ReLU after the last block, as in the networks of the backdoor benchmarks.
    """
    depth = checked_depth("preactresnet18", width, depth, BLOCKS)
    how = dict(depth=depth, norm_eps=norm_eps, norm_momentum=norm_momentum, dtype=dtype, lowering=lowering, loop=loop)
    network = _PreActResNet(spec.classes, width, depth, norm_eps, norm_momentum, dtype, lowering)
    return build(
        network,
        arch=_arch(depth),
        factory=preactresnet18,
        spec=spec,
        width=width,
        how=how,
    )
