"""Inverted residual blocks and the trunk of stem, blocks and last convolution that EfficientNet and MobileNet share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn

from bdjax.nn.depthwise import DepthwiseConv
from bdjax.nn.initial import he_fan_out
from bdjax.nn.layers import Conv, NormAct, Pass, SqueezeExcite, stochastic_depth, tap
from bdjax.types import ArchSpec, Array

Activation = Callable[[Array], Array]


class Block(NamedTuple):
    """One block (static)."""

    name: str  # its address
    window: int
    stride: int
    expanded: int  # channels of the depthwise convolution
    features: int  # channels out
    squeezed: int  # channels inside squeeze-and-excitation; 0 = there is none
    expands: bool  # begins with a 1x1 convolution to `expanded` channels
    residual: bool
    act: Activation
    rate: float = 0.0  # of stochastic depth
    ends: str = ""  # address of the stage output that this block gives


class Trunk(NamedTuple):
    """Everything before the pooling (static)."""

    stem: int  # channels
    blocks: tuple[Block, ...]
    last: int  # channels of the last convolution, which is 1x1
    position: int  # of that convolution in `features`
    act: Activation  # of stem and last convolution
    squeeze_act: Activation
    squeeze_in_place: bool  # published code writes it over the output of the convolution before it
    gate: Activation
    eps: float
    momentum: float
    dtype: Any
    lowering: str


class _Unit(NamedTuple):
    kind: str  # "expand" | "depthwise" | "squeeze" | "project"
    name: str


def _units(block: Block) -> Iterator[_Unit]:
    """Yield the units of a block in order, numbered from 0."""
    kinds = [("expand", block.expands), ("depthwise", True), ("squeeze", block.squeezed > 0), ("project", True)]
    present = [kind for kind, there in kinds if there]
    return (_Unit(kind, f"block_{i}") for i, kind in enumerate(present))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, convolve every channel on its own, weigh the channels, project to fewer; add the input.

    Each convolution is followed by a norm, and the first two by the block's activation. Names count the units that are there:
    ``block_0_0`` and ``block_0_1`` are convolution and norm of the first one.

    Source: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
      CVPR 2018.
    """

    block: Block
    trunk: Trunk

    @nn.compact
    def __call__(self, x: Array, run: Pass) -> Array:
        block, trunk = self.block, self.trunk
        conv, norm = _layers(trunk)
        y = x
        for kind, name in _units(block):
            if kind == "squeeze":
                layer = SqueezeExcite(block.squeezed, trunk.squeeze_act, trunk.gate, trunk.lowering, trunk.dtype, name=name)
                y = layer(y, run)
                continue
            if kind == "depthwise":
                y = DepthwiseConv(block.window, block.stride, trunk.dtype, name=f"{name}_0")(y, run)
            else:
                y = conv(block.expanded if kind == "expand" else block.features, 1, name=f"{name}_0")(y, run)
            y = norm(act=None if kind == "project" else block.act, name=f"{name}_1")(y, run)
        return x + stochastic_depth(y, block.rate, run, "/".join(self.path)) if block.residual else y


def _layers(trunk: Trunk) -> tuple[Callable[..., Conv], Callable[..., NormAct]]:
    conv = functools.partial(Conv, lowering=trunk.lowering, dtype=trunk.dtype, kernel_init=he_fan_out)
    return conv, functools.partial(NormAct, trunk.eps, trunk.momentum)


def run_trunk(x: Array, run: Pass, trunk: Trunk) -> Array:
    """Turn normalised images into features, f[b h w c] -> f[b h' w' last]; called inside a network's compact method."""
    conv, norm = _layers(trunk)
    x = conv(trunk.stem, 3, 2, name="features_0_0")(x, run)
    x = norm(act=trunk.act, name="features_0_1")(x, run)
    for block in trunk.blocks:
        x = InvertedResidual(block, trunk, name=block.name)(x, run)
        if block.ends:
            x = tap(x, block.ends, run)
    x = conv(trunk.last, 1, name=f"features_{trunk.position}_0")(x, run)
    return norm(act=trunk.act, name=f"features_{trunk.position}_1")(x, run)


def describe(trunk: Trunk, heads: tuple[str, ...]) -> ArchSpec:
    """Return the addresses of a network with this trunk; a plug goes before the last convolution.

    Args:
      trunk: its trunk.
      heads: its linear layers, in order.
    """
    registered: list[tuple[str, str]] = []
    activations: list[tuple[Activation | None, str]] = []
    in_place: list[tuple[str, str]] = []

    def unit(address: str, act: Activation | None) -> None:
        registered.extend((("conv", f"{address}_0"), ("norm", f"{address}_1")))
        activations.append((act, f"{address}_1/act"))

    unit("features_0", trunk.act)
    for block in trunk.blocks:
        for kind, name in _units(block):
            if kind == "squeeze":
                registered.extend(("conv", f"{block.name}/{name}/{layer}") for layer in ("fc1", "fc2"))
                squeezed = f"{block.name}/{name}/fc1"
                activations.append((trunk.squeeze_act, f"{squeezed}/act"))
                if trunk.squeeze_in_place:
                    in_place.append((squeezed, f"{squeezed}/act"))
            else:
                unit(f"{block.name}/{name}", None if kind == "project" else block.act)
    unit(f"features_{trunk.position}", trunk.act)
    norms = tuple(address for kind, address in registered if kind == "norm")
    stages = tuple(block.ends for block in trunk.blocks if block.ends)
    return ArchSpec(
        registered=tuple(registered),
        norms=norms,
        feeds=tuple((norm, f"{norm.removesuffix('_1')}_0") for norm in norms),
        heads=heads,
        stages=stages,
        plug_site=stages[-1],
        activations=tuple(address for act, address in activations if act is trunk.act),  # MobileNet's ReLUs are left out
        in_place=tuple(in_place),
    )
