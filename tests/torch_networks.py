"""The four architectures in plain PyTorch, written for the tests, and our weights and statistics under their names.

Module names are those of published checkpoints. Channel counts come from each paper's own rules, not from tables of the package.
"""

import math

import numpy as np
import pytest

from bdjax import tree
from bdjax.nn.folded_linear import GRID, fold, unfold

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional


def scale(channels, width, base):
    return max(1, round(channels * width / base))


def eights(channels):
    """The multiple of 8 that is nearest and not more than a tenth below."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


class Block(nn.Module):
    """Pre-activation basic block."""

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False)) if stride > 1 else None

    def forward(self, x):
        a = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + (self.shortcut(a) if self.shortcut else x)


class PreActResNet18(nn.Module):
    def __init__(self, classes, width=64, depth=None):
        super().__init__()
        self.conv1, inputs = nn.Conv2d(3, width, 3, 1, 1, bias=False), width
        for s in range(4):
            blocks = [Block(inputs, width << s, 2 if s else 1), Block(width << s, width << s, 1)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks[:depth]))
            inputs = width << s
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x))))).mean((2, 3)))


class Vgg19(nn.Module):
    def __init__(self, classes, width=64, depth=None):
        super().__init__()
        layers, index, inputs = {}, 0, 3
        for s, count in enumerate((2, 2, 4, 4, 4)):
            for i in range(count):
                if depth is None or i < depth:
                    features = width << min(s, 3)
                    conv = nn.Conv2d(inputs, features, 3, 1, 1)
                    layers |= {f"{index}": conv, f"{index + 1}": nn.BatchNorm2d(features), f"{index + 2}": nn.ReLU()}
                    inputs = features
                index += 3
            layers[f"{index}"] = nn.MaxPool2d(2)
            index += 1
        self.features, hidden = nn.ModuleDict(layers), scale(4096, width, 64)
        first, second = nn.Linear(49 * inputs, hidden), nn.Linear(hidden, hidden)
        last = nn.Linear(hidden, classes)
        self.classifier = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), second, nn.ReLU(), nn.Dropout(0.5), last)

    def forward(self, x):
        for layer in self.features.values():
            x = layer(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 7).flatten(1))


def unit(inputs, features, window, stride, act, norm, groups=1):
    conv = nn.Conv2d(inputs, features, window, stride, window // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(features), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed, act, gate):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, inputs, expanded, features, window, stride, act, norm, squeeze, expands, residual):
        super().__init__()
        units = [unit(inputs, expanded, 1, 1, act, norm)] if expands else []
        units += [unit(expanded, expanded, window, stride, act, norm, expanded), *squeeze]
        self.block, self.residual = nn.Sequential(*units, unit(expanded, features, 1, 1, None, norm)), residual

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNetB3(nn.Module):
    """B0 with 1.2 times the channels, in eights, and 1.4 times the blocks; without stochastic depth."""

    def __init__(self, classes, width=40, depth=None):
        super().__init__()
        act, norm = nn.SiLU, nn.BatchNorm2d
        inputs = width
        features = [unit(3, inputs, 3, 2, act, norm)]
        b0 = [(16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1)]
        for s, (channels, repeats, window, stride) in enumerate(b0):
            blocks, outputs = [], scale(eights(1.2 * channels), width, 40)
            for i in range(math.ceil(1.4 * repeats)):
                expanded = inputs * (6 if s else 1)
                squeeze = [SqueezeExcite(expanded, max(1, inputs // 4), act, nn.Sigmoid)]
                step = 1 if i else stride
                blocks.append(Inverted(inputs, expanded, outputs, window, step, act, norm, squeeze, s > 0, i > 0))
                inputs = outputs
            features.append(nn.Sequential(*blocks[:depth]))
        last = scale(4 * eights(1.2 * 320), width, 40)
        self.features = nn.Sequential(*features, unit(inputs, last, 1, 1, act, norm))
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(last, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV3Large(nn.Module):
    def __init__(self, classes, width=16, depth=None):
        super().__init__()

        def norm(channels):
            return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

        re, hs = nn.ReLU, nn.Hardswish
        rows = [  # window, expanded, channels, squeezed?, activation, stride: the paper's table 1
            (3, 16, 16, 0, re, 1), (3, 64, 24, 0, re, 2), (3, 72, 24, 0, re, 1), (5, 72, 40, 1, re, 2), (5, 120, 40, 1, re, 1),
            (5, 120, 40, 1, re, 1), (3, 240, 80, 0, hs, 2), (3, 200, 80, 0, hs, 1), (3, 184, 80, 0, hs, 1),
            (3, 184, 80, 0, hs, 1), (3, 480, 112, 1, hs, 1), (3, 672, 112, 1, hs, 1), (5, 672, 160, 1, hs, 2),
            (5, 960, 160, 1, hs, 1), (5, 960, 160, 1, hs, 1),
        ]  # fmt: skip
        features, before, alike = {"0": unit(3, width, 3, 2, hs, norm)}, 16, 0
        for i, (window, expanded, channels, squeezed, act, stride) in enumerate(rows, 1):
            alike = alike + 1 if i > 1 and channels == rows[i - 2][2] else 1
            if depth is not None and alike > depth:
                continue
            inputs, inner, outputs = (scale(c, width, 16) for c in (before, expanded, channels))
            squeeze = SqueezeExcite(inner, scale(eights(expanded / 4), width, 16), re, nn.Hardsigmoid) if squeezed else None
            shapes = (inputs, inner, outputs, window, stride, act, norm, [squeeze] if squeezed else [])
            features[f"{i}"] = Inverted(*shapes, expanded != before, stride == 1 and before == channels)
            before = channels
        last, hidden = scale(960, width, 16), scale(1280, width, 16)
        features["16"] = unit(scale(160, width, 16), last, 1, 1, hs, norm)
        self.features = nn.ModuleDict(features)
        self.classifier = nn.Sequential(nn.Linear(last, hidden), hs(), nn.Dropout(0.2), nn.Linear(hidden, classes))

    def forward(self, x):
        for layer in self.features.values():
            x = layer(x)
        return self.classifier(x.mean((2, 3)))


NETWORKS = {
    "preactresnet18": PreActResNet18,
    "vgg19_bn": Vgg19,
    "efficientnet_b3": EfficientNetB3,
    "mobilenet_v3_large": MobileNetV3Large,
}


def published(model):
    """[(our address, name in published checkpoints)] in registration order."""
    every = [address for _, address in model.arch.registered] + list(model.arch.heads)
    return [(address, address.replace("/", ".").replace("_", ".")) for address in every]


def benchmarked(model):
    """[(our address, name in benchmarks.torch_reference)]."""
    if model.name == "cnn":
        pairs = [(f"{kind}{i + 1}", f"features.{3 * i + j}") for i in range(3) for j, kind in enumerate(("conv", "bn"))]
        return [*pairs, ("linear", "linear")]
    pairs = [("conv1", "stem"), ("linear", "linear")]
    for _, address in model.arch.registered[1:]:
        block, part = address.split("/")
        stage, index = block.removeprefix("layer").split("_")
        pairs.append((address, f"blocks.{2 * (int(stage) - 1) + int(index)}.{part.removesuffix('_0')}"))
    return pairs


def state_dict(variables, names):
    """Our weights and statistics under PyTorch's names, as float32 tensors."""
    state = {}
    for address, name in names:
        leaves = tree.get(variables["params"], address)
        for leaf, value in leaves.items():
            state[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = torch.tensor(_to_torch(variables, address, leaf, value))
        if "scale" in leaves:
            statistics = tree.get(variables["batch_stats"], address)
            state[f"{name}.running_mean"] = torch.tensor(np.asarray(statistics["mean"]))
            state[f"{name}.running_var"] = torch.tensor(np.asarray(statistics["var"]))
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def _to_torch(variables, address, leaf, value):
    value = np.asarray(value)
    if leaf != "kernel":
        return value
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if address == "classifier_0" and "classifier_6" in variables["params"]:  # VGG's, behind the pooling
        c = _channels(variables)
        weight = value.reshape(-1, c, value.shape[1]).transpose(2, 1, 0)
        if weight.shape[-1] < GRID**2:
            weight = unfold(weight, math.isqrt(weight.shape[-1]))
        return np.ascontiguousarray(weight.reshape(value.shape[1], -1))
    return np.ascontiguousarray(value.T)


def seen_by(variables, weight, positions):
    """What a folded layer keeps of PyTorch's weights [out, 49 c], as those weights: its projection."""
    full = np.asarray(weight, np.float64).reshape(weight.shape[0], _channels(variables), GRID**2)
    h = math.isqrt(positions)
    return unfold(fold(full, h), h).reshape(weight.shape).astype(np.float32)


def _channels(variables):
    """Channels of VGG's features."""
    last = max((name for name in variables["batch_stats"]), key=lambda name: int(name.removeprefix("features_")))
    return variables["batch_stats"][last]["mean"].shape[0]
