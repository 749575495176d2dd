"""The four published networks against the facts of their architectures, at full width; nothing is computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.models import MODELS
from bdjax.models.efficientnet import efficientnet_b3
from bdjax.models.mobilenet import mobilenet_v3_large
from bdjax.models.preact_resnet import preactresnet18
from bdjax.models.vgg import vgg19_bn
from bdjax.population.multiplications import forward_macs
from benchmarks.shapes import layers
from tests.later import some_later
from tests.networks import INVERTED, PUBLISHED, WIDTHS, shapes, spec

SIZED = [
    pytest.param(name, size, marks=[pytest.mark.slow] * (size == 64 and name in INVERTED))
    for size in (32, 64)
    for name in PUBLISHED
]

# parameters for 10, 43 and 200 classes at 32 pixels
PARAMETERS = {
    "preactresnet18": (11_171_146, 11_188_075, 11_268_616),
    "vgg19_bn": (38_958_922, 39_094_123, 39_737_352),
    "efficientnet_b3": (10_711_602, 10_762_323, 11_003_632),
    "mobilenet_v3_large": (4_214_842, 4_257_115, 4_458_232),
}
# parameter tensors, convolutions, norms, channels of norms, of convolutions
TENSORS = {
    "preactresnet18": (54, 20, 16, 3_392, 4_800),
    "vgg19_bn": (70, 16, 16, 5_504, 5_504),
    "efficientnet_b3": (340, 130, 78, 43_648, 63_728),
    "mobilenet_v3_large": (174, 62, 46, 12_200, 17_280),
}
# multiply-accumulates at 32 and 64 pixels, 10 classes; VGG's with its first linear layer whole
MACS = {
    "preactresnet18": (555_422_720, 2_221_675_520),
    "vgg19_bn": (517_709_824, 1_712_103_424),
    "efficientnet_b3": (21_452_816, 80_186_240),
    "mobilenet_v3_large": (7_087_040, 20_101_760),
}
FEATURES = {"preactresnet18": (4, 512), "vgg19_bn": (1, 512), "efficientnet_b3": (1, 1536), "mobilenet_v3_large": (1, 960)}
STAGE_SIDES = {
    "preactresnet18": [32, 16, 8, 4],
    "vgg19_bn": [16, 8, 4, 2, 1],
    "efficientnet_b3": [16, 8, 4, 2, 2, 1, 1],
    "mobilenet_v3_large": [16, 8, 4, 2, 1],
}
PLUGS = {"preactresnet18": (4, 512), "vgg19_bn": (2, 512), "efficientnet_b3": (1, 384), "mobilenet_v3_large": (1, 160)}


def count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model)["params"]))


def taps(model, wanted):
    images = jax.ShapeDtypeStruct((2, *model.spec.image_shape), jnp.float32)
    return jax.eval_shape(lambda v, x: model.apply(v, x, record=wanted), shapes(model), images).taps


CLASSES = (10, 43, 200)
COUNTED = [
    pytest.param(name, classes, marks=[pytest.mark.slow] * (name in INVERTED and classes != 10))
    for name in PUBLISHED
    for classes in CLASSES
]


@pytest.mark.parametrize(("name", "classes"), COUNTED)
def test_parameters(name, classes):
    assert count(MODELS[name](spec(classes))) == PARAMETERS[name][CLASSES.index(classes)]


@pytest.mark.parametrize("name", some_later([name for name in PUBLISHED if name != "vgg19_bn"], INVERTED))
def test_parameters_do_not_depend_on_the_size_of_the_images(name):
    assert count(MODELS[name](spec(10, 64))) == PARAMETERS[name][0]


def test_parameters_of_vgg_whole_and_at_64_pixels():
    whole = tuple(count(vgg19_bn(spec(classes), fold=False)) for classes in (10, 43, 200))
    assert whole == (139_622_218, 139_757_419, 140_400_648)
    assert count(vgg19_bn(spec(200, 64))) == 46_028_808
    assert count(vgg19_bn(spec(200, 64), fold=False)) == whole[-1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_and_channels(name):
    model = MODELS[name](spec())
    abstract = shapes(model)
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    norms = tree.flatten(abstract["batch_stats"])
    channels = sum(leaf.shape[0] for path, leaf in norms.items() if path.endswith("mean"))
    outputs = sum(tree.get(abstract["params"], f"{conv}/kernel").shape[-1] for conv in convs)
    found = (len(jax.tree.leaves(abstract["params"])), len(convs), len(model.arch.norms), channels, outputs)
    assert found == TENSORS[name]
    assert len(model.arch.feeds) == (9 if name == "preactresnet18" else len(model.arch.norms))


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_have_the_published_shapes_in_order(name):
    """Every convolution's window and channels against the stage tables of benchmarks/shapes.py, in registration order."""
    model = MODELS[name](spec())
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    found = [tree.get(shapes(model)["params"], f"{conv}/kernel").shape for conv in convs]
    want = []
    for layer in layers(name, 32):
        s = layer.shape
        want.append((s.window, s.window, 1 if s.kind == "depthwise" else s.channels_in, s.channels_out))
    assert found == want


@pytest.mark.parametrize(("name", "size"), SIZED)
def test_multiply_accumulates(name, size):
    """Dense convolutions and products are counted; depthwise ones, element-wise here, come from the stage tables."""
    fields = {"fold": False} if name == "vgg19_bn" else {}
    model = MODELS[name](spec(size=size), **fields)
    depthwise = sum(layer.shape.macs for layer in layers(name, size) if layer.role == "depthwise")
    pooling = 0
    if name == "vgg19_bn":  # the average pooling: 1x1 to 7x7 by one product of both directions, 2x2 one after the other
        pooling = {32: 49 + 49 * 512, 64: (7 * 2 * 2 + 49 * 2) * 512}[size]
    assert forward_macs(model, size) + depthwise == MACS[name][size == 64] + pooling


@pytest.mark.parametrize(("name", "size"), SIZED)
def test_features_stages_and_the_plug(name, size):
    model, factor = MODELS[name](spec(size=size)), size // 32
    found = taps(model, ("features", model.arch.plug_site, *model.arch.stages))
    for address, (side, channels) in (("features", FEATURES[name]), (model.arch.plug_site, PLUGS[name])):
        assert found[address].shape == (2, side * factor, side * factor, channels)
    sides = [found[stage].shape[1] // factor for stage in model.arch.stages]
    assert sides == STAGE_SIDES[name]


def test_the_plug_acts_where_the_survey_has_it():
    """On the input of the last convolution of VGG, of the last block's first one in the residual network, of the last 1x1."""
    assert preactresnet18(spec()).arch.plug_site == "layer4_1/bn1/act"
    assert preactresnet18(spec(), depth=1).arch.plug_site == "layer4_0/bn1/act"
    assert vgg19_bn(spec()).arch.plug_site == "features_47/act" and vgg19_bn(spec(), depth=1).arch.plug_site == "stage4"
    assert efficientnet_b3(spec()).arch.plug_site == "stage7" and mobilenet_v3_large(spec()).arch.plug_site == "stage5"


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_reduced_networks_keep_names_and_full_ones_are_depth_none(name, depth):
    full, cut = MODELS[name](spec(), WIDTHS[name]), MODELS[name](spec(), WIDTHS[name], depth=depth)
    kept = set(cut.arch.registered)
    assert [item for item in full.arch.registered if item in kept] == list(cut.arch.registered)
    assert set(cut.arch.feeds) <= set(full.arch.feeds)
    assert (cut.arch.stages, cut.arch.heads) == (full.arch.stages, full.arch.heads)
    paths = tree.flatten(shapes(full)["params"])
    assert all(paths[path].shape == leaf.shape for path, leaf in tree.flatten(shapes(cut)["params"]).items())
    assert MODELS[name](spec(), WIDTHS[name], depth=99).arch == full.arch


def started(model, addresses, seed=0):
    """The fresh parameters at some addresses, in NumPy; what is not asked for is not drawn."""
    draw = jax.jit(lambda key: {a: tree.get(model.init(key)["params"], a) for a in addresses})
    return jax.device_get(draw(jax.random.key(seed)))


def test_first_kernels_of_the_inverted_networks():
    for model, addresses in (
        (efficientnet_b3(spec(), depth=1), ["features_5_0/block_1_0", "features_6_0/block_3_0", "features_4_0/block_2/fc1"]),
        (mobilenet_v3_large(spec(), depth=1), ["features_13/block_1_0", "features_4/block_3_0", "features_11/block_2/fc2"]),
    ):
        params = started(model, (*addresses, *model.arch.heads))
        for address in addresses:
            layer = params[address]
            window, _, _, out = layer["kernel"].shape
            assert float(np.std(layer["kernel"])) == pytest.approx(math.sqrt(2 / (out * window**2)), rel=0.05)
            assert "bias" not in layer or not np.any(layer["bias"])
        for head in model.arch.heads:
            assert not np.any(params[head]["bias"])
    assert float(np.std(params["classifier_0"]["kernel"])) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("classes", [10, 200])
def test_the_range_of_efficientnets_classifier_depends_on_the_classes(classes):
    model = efficientnet_b3(spec(classes), 10, depth=1)
    kernel = started(model, ("classifier_1",), 1)["classifier_1"]["kernel"]
    bound = 1 / math.sqrt(classes)
    assert 0.98 * bound < float(np.max(np.abs(kernel))) <= bound
    assert float(np.std(kernel)) == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize(("size", "fold"), [(32, True), (64, True), (32, False)])
def test_first_kernels_of_vgg(size, fold):
    """Folded or whole, independent numbers of deviation 0.01: the pooled and multiplied feature then has 0.07 at 32 pixels."""
    model = vgg19_bn(spec(size=size), 16, depth=1, fold=fold)
    params = started(model, (*model.arch.heads, "features_40"))
    first = params["classifier_0"]["kernel"]
    assert first.shape == (128 * ((size // 32) ** 2 if fold else 49), 1024)
    for kernel in (first, params["classifier_3"]["kernel"]):
        assert float(np.std(kernel)) == pytest.approx(0.01, rel=0.02)
    conv = params["features_40"]
    assert float(np.std(conv["kernel"])) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02) and not np.any(conv["bias"])
    if size == 32:
        run = jax.jit(lambda v, x: model.apply(v, x, start="features", record=("head",)).taps["head"])
        head = np.asarray(run({"params": params, "batch_stats": {}}, np.ones((1, 1, 1, 128), np.float32)))
        effective = head[:, :128] if fold else np.ones((1, 128)) * 7
        np.testing.assert_allclose(effective, 7, rtol=1e-6)
