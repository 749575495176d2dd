"""Names, order and shapes of state dicts, against the specification written out here and against PyTorch."""

import pytest

from bdjax.interop.layout import layout, torch_name
from bdjax.models import MODELS
from tests.interop.checkpoints import reduced, spec

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def leaves(module, *suffixes):
    return [f"{module}.{suffix}" for suffix in suffixes]


def preactresnet18():
    keys = ["conv1.weight"]
    for s in (1, 2, 3, 4):
        for b in (0, 1):
            for i in (1, 2):
                keys += [*leaves(f"layer{s}.{b}.bn{i}", *NORM), f"layer{s}.{b}.conv{i}.weight"]
            keys += [f"layer{s}.{b}.shortcut.0.weight"] * (s > 1 and b == 0)
    return keys + leaves("linear", "weight", "bias")


def vgg19_bn():
    keys = []
    for i in (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49):
        keys += [*leaves(f"features.{i}", "weight", "bias"), *leaves(f"features.{i + 1}", *NORM)]
    return keys + [key for i in (0, 3, 6) for key in leaves(f"classifier.{i}", "weight", "bias")]


def units(prefix, kinds):
    keys = []
    for u, kind in enumerate(kinds):
        if kind == "squeeze":
            keys += [*leaves(f"{prefix}.{u}.fc1", "weight", "bias"), *leaves(f"{prefix}.{u}.fc2", "weight", "bias")]
        else:
            keys += [f"{prefix}.{u}.0.weight", *leaves(f"{prefix}.{u}.1", *NORM)]
    return keys


def efficientnet_b3():
    keys = ["features.0.0.weight", *leaves("features.0.1", *NORM)]
    for s, blocks in enumerate((2, 3, 3, 5, 5, 6, 2), 1):
        for b in range(blocks):
            keys += units(f"features.{s}.{b}.block", (["expand"] if s > 1 else []) + ["depthwise", "squeeze", "project"])
    return [*keys, "features.8.0.weight", *leaves("features.8.1", *NORM), *leaves("classifier.1", "weight", "bias")]


def mobilenet_v3_large():
    keys = ["features.0.0.weight", *leaves("features.0.1", *NORM)]
    for i in range(1, 16):
        squeezes = ["squeeze"] if i in (4, 5, 6, 11, 12, 13, 14, 15) else []
        keys += units(f"features.{i}.block", (["expand"] if i > 1 else []) + ["depthwise", *squeezes, "project"])
    keys += ["features.16.0.weight", *leaves("features.16.1", *NORM)]
    return keys + [key for i in (0, 3) for key in leaves(f"classifier.{i}", "weight", "bias")]


@pytest.mark.parametrize(
    ("keys", "count"), [(preactresnet18, 102), (vgg19_bn, 118), (efficientnet_b3, 574), (mobilenet_v3_large, 312)]
)
def test_keys_and_their_order(keys, count):
    names = [tensor.name for tensor in layout(reduced(keys.__name__))]
    assert len(names) == count
    assert names == keys()


def test_an_address_is_a_module():
    assert torch_name("layer2_0/shortcut_0") == "layer2.0.shortcut.0"
    assert torch_name("features_1_0/block_1/fc1") == "features.1.0.block.1.fc1"


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"cnn"}))
@pytest.mark.parametrize("classes", [10, 43])
def test_names_and_shapes_at_full_width_are_pytorchs(name, classes):
    torch = pytest.importorskip("torch")
    from tests.torch_networks import NETWORKS

    with torch.device("meta"):
        want = {key: tuple(value.shape) for key, value in NETWORKS[name](classes).state_dict().items()}
    for size in (32, 64):
        assert {tensor.name: tensor.shape for tensor in layout(MODELS[name](spec(classes, size)))} == want
