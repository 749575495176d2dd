"""The convolutions of the four architectures, layer by layer and as distinct shapes with their counts.

Derived from the stage tables below (widths, depths and strides as published by the architectures' authors); nothing is built or
traced. Squeeze-and-excitation layers are 1x1 convolutions on 1x1 maps.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

ARCHITECTURES = ("preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large")

_PREACT = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first of two blocks
_VGG = (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4)  # 0 = max-pool
_EFFICIENT_STEM, _EFFICIENT_HEAD = 40, 1536
_EFFICIENT = (  # blocks, window, stride, expansion, channels
    (2, 3, 1, 1, 24),
    (3, 3, 2, 6, 32),
    (3, 5, 2, 6, 48),
    (5, 3, 2, 6, 96),
    (5, 5, 1, 6, 136),
    (6, 5, 2, 6, 232),
    (2, 3, 1, 6, 384),
)
_MOBILE_STEM, _MOBILE_HEAD = 16, 960
_MOBILE = (  # window, expanded channels, channels, squeezed channels (0 = none), stride
    (3, 16, 16, 0, 1),
    (3, 64, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 24, 2),
    (5, 120, 40, 32, 1),
    (5, 120, 40, 32, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 120, 1),
    (3, 672, 112, 168, 1),
    (5, 672, 160, 168, 2),
    (5, 960, 160, 240, 1),
    (5, 960, 160, 240, 1),
)


class Shape(NamedTuple):
    """One convolution on square images; ``count`` is how often it occurs."""

    name: str
    kind: str  # "dense" | "pointwise" | "depthwise"
    window: int
    stride: int
    channels_in: int
    channels_out: int
    size: int  # height and width of its input
    count: int = 1

    @property
    def padding(self) -> int:
        return (self.window - 1) // 2

    @property
    def output_size(self) -> int:
        return (self.size + 2 * self.padding - self.window) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, taps on padding included."""
        fan_in = 1 if self.kind == "depthwise" else self.channels_in
        return self.output_size**2 * self.window**2 * fan_in * self.channels_out


class Layer(NamedTuple):
    """A convolution in its network; ``role`` is conv, stem, shortcut, expand, depthwise, squeeze, excite, project or head."""

    role: str
    shape: Shape


def layers(architecture: str, image_size: int, width_factor: float = 1.0) -> list[Layer]:
    """Every convolution of an architecture, in order.

    Args:
      architecture: one of :data:`ARCHITECTURES`.
      image_size: height and width of the images, 32 or 64.
      width_factor: scales all channel counts but the images' 3; 1 = as published.
    """
    walks = {"preactresnet18": _preact, "vgg19_bn": _vgg, "efficientnet_b3": _efficient, "mobilenet_v3_large": _mobile}
    return list(walks[architecture](image_size, width_factor))


def shapes(architecture: str, image_size: int, width_factor: float = 1.0) -> list[Shape]:
    """Distinct convolutions of one architecture with their counts, in order of first occurrence."""
    return distinct([architecture], image_size, width_factor)


def distinct(architectures: Sequence[str], image_size: int, width_factor: float = 1.0) -> list[Shape]:
    """Distinct convolutions of several architectures; counts add up over architectures."""
    counts: dict[Shape, int] = {}
    for architecture in architectures:
        for layer in layers(architecture, image_size, width_factor):
            counts[layer.shape] = counts.get(layer.shape, 0) + 1
    return [shape._replace(count=count) for shape, count in counts.items()]


def _layer(role: str, window: int, stride: int, c: int, d: int, size: int) -> Layer:
    kind = "depthwise" if role == "depthwise" else "pointwise" if window == 1 else "dense"
    channels = str(c) if kind == "depthwise" else f"{c}>{d}"
    prefix = "dw " if kind == "depthwise" else ""
    return Layer(role, Shape(f"{prefix}{window}x{window}/{stride} {channels} @{size}", kind, window, stride, c, d, size))


def _scaled(channels: int, factor: float) -> int:
    return max(1, round(channels * factor))


def _preact(size: int, factor: float) -> Iterator[Layer]:
    c = _scaled(64, factor)
    yield _layer("stem", 3, 1, 3, c, size)
    for width, first_stride in _PREACT:
        for stride in (first_stride, 1):
            d = _scaled(width, factor)
            yield _layer("conv", 3, stride, c, d, size)
            yield _layer("conv", 3, 1, d, d, size // stride)
            if stride != 1 or c != d:
                yield _layer("shortcut", 1, stride, c, d, size)
            c, size = d, size // stride


def _vgg(size: int, factor: float) -> Iterator[Layer]:
    c = 3
    for width in _VGG:
        if not width:
            size //= 2
            continue
        d = _scaled(width, factor)
        yield _layer("conv", 3, 1, c, d, size)
        c = d


def _efficient(size: int, factor: float) -> Iterator[Layer]:
    c = _scaled(_EFFICIENT_STEM, factor)
    yield _layer("stem", 3, 2, 3, c, size)
    size //= 2
    for blocks, window, first_stride, expansion, width in _EFFICIENT:
        for block in range(blocks):
            stride = 1 if block else first_stride
            d = _scaled(width, factor)
            yield from _inverted(window, stride, c, expansion * c, d, max(1, c // 4), size)
            c, size = d, size // stride
    yield _layer("head", 1, 1, c, _scaled(_EFFICIENT_HEAD, factor), size)


def _mobile(size: int, factor: float) -> Iterator[Layer]:
    c = _scaled(_MOBILE_STEM, factor)
    yield _layer("stem", 3, 2, 3, c, size)
    size //= 2
    for window, expanded, width, squeezed, stride in _MOBILE:
        d = _scaled(width, factor)
        yield from _inverted(window, stride, c, _scaled(expanded, factor), d, squeezed and _scaled(squeezed, factor), size)
        c, size = d, size // stride
    yield _layer("head", 1, 1, c, _scaled(_MOBILE_HEAD, factor), size)


def _inverted(window: int, stride: int, c: int, expanded: int, d: int, squeezed: int, size: int) -> Iterator[Layer]:
    if expanded != c:
        yield _layer("expand", 1, 1, c, expanded, size)
    yield _layer("depthwise", window, stride, expanded, expanded, size)
    if squeezed:
        yield _layer("squeeze", 1, 1, expanded, squeezed, 1)
        yield _layer("excite", 1, 1, squeezed, expanded, 1)
    yield _layer("project", 1, 1, expanded, d, size // stride)
