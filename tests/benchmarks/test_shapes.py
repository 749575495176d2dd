"""The shapes behind the lowering table are those of the published architectures."""

import itertools

import pytest

from benchmarks.shapes import ARCHITECTURES, distinct, layers, shapes

# convolutions, of which depthwise, of which squeeze-and-excitation; output channels in total; multiply-accumulates of the whole
# network with 10 classes at 32 and 64 px; of which in linear layers
PUBLISHED = {
    "preactresnet18": (20, 0, 0, 4_800, 555_422_720, 2_221_675_520, 5_120),
    "vgg19_bn": (16, 0, 0, 5_504, 517_709_824, 1_712_103_424, 102_760_448 + 16_777_216 + 40_960),
    "efficientnet_b3": (130, 26, 52, 63_728, 21_452_816, 80_186_240, 15_360),
    "mobilenet_v3_large": (62, 15, 16, 17_280, 7_087_040, 20_101_760, 1_228_800 + 12_800),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_counts(architecture):
    convolutions, depthwise, squeeze, channels, macs_32, macs_64, linear = PUBLISHED[architecture]
    found = layers(architecture, 32)
    assert len(found) == convolutions
    assert sum(layer.role == "depthwise" for layer in found) == depthwise
    assert sum(layer.role in ("squeeze", "excite") for layer in found) == squeeze
    assert sum(layer.shape.channels_out for layer in found) == channels
    assert sum(layer.shape.macs for layer in found) == macs_32 - linear
    assert sum(layer.shape.macs for layer in layers(architecture, 64)) == macs_64 - linear


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [32, 64])
def test_distinct_shapes_keep_the_totals(architecture, size):
    found, every = shapes(architecture, size), layers(architecture, size)
    assert len({shape.name for shape in found}) == len(found) < len(every)
    assert sum(shape.count for shape in found) == len(every)
    assert sum(shape.count * shape.macs for shape in found) == sum(layer.shape.macs for layer in every)


def test_architectures_share_shapes():
    both = distinct(["preactresnet18", "vgg19_bn"], 32)
    assert len(both) < len(shapes("preactresnet18", 32)) + len(shapes("vgg19_bn", 32))
    assert sum(shape.count for shape in both) == 20 + 16
    assert {shape.name: shape.count for shape in both}["3x3/1 64>64 @32"] == 4 + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_fit_together_at_a_quarter_of_the_width(architecture):
    """Except where a shortcut or a squeeze branches off, each layer reads what the one before it writes."""
    narrow = layers(architecture, 32, 0.25)
    assert [layer.role for layer in narrow] == [layer.role for layer in layers(architecture, 32)]
    assert narrow[0].shape.channels_in == 3
    trunk = [layer.shape for layer in narrow if layer.role not in ("shortcut", "squeeze", "excite")]
    for before, after in itertools.pairwise(trunk):
        assert before.channels_out == after.channels_in
        assert after.size in (before.output_size, before.output_size // 2)


def test_depthwise_keep_their_channels():
    found = [layer.shape for layer in layers("mobilenet_v3_large", 32) if layer.role == "depthwise"]
    assert [shape.size for shape in found] == [16, 16, 8, 8, 4, 4, 4, 2, 2, 2, 2, 2, 2, 1, 1]
    assert all(shape.channels_in == shape.channels_out and shape.window in (3, 5) for shape in found)
