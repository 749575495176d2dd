"""The same training work in PyTorch, one model after another: the yardstick of the CPU and GPU benchmarks. Needs torch."""

import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-activation basic block."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(features)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        projected = stride != 1 or inputs != features
        self.shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False) if projected else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class PreActResNet18(nn.Module):
    """PreActResNet-18 of any width, as bdjax.models.preactresnet18."""

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width * 2**s for s in range(4)]
        blocks, inputs = [], width
        for features, stride in zip(widths, (1, 2, 2, 2), strict=True):
            blocks += [Block(inputs, features, stride), Block(features, features, 1)]
            inputs = features
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.blocks(self.stem(x)).mean((2, 3)))


class Cnn(nn.Module):
    """The small network, as bdjax.models.cnn."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        layers, inputs = [], 3
        for i, stride in enumerate((1, 2, 2)):
            layers += [nn.Conv2d(inputs, width * 2**i, 3, stride, 1, bias=False), nn.BatchNorm2d(width * 2**i), nn.ReLU()]
            inputs = width * 2**i
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x).mean((2, 3)))


NETWORKS = {"preactresnet18": PreActResNet18, "cnn": Cnn}


def augment(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Per-sample random crop and flip of u8[b c h w], vectorised."""
    b, _, h, w = images.shape
    padded = F.pad(images, (pad,) * 4)
    rows = torch.randint(0, 2 * pad + 1, (b, 1)) + torch.arange(h)
    columns = torch.randint(0, 2 * pad + 1, (b, 1)) + torch.arange(w)
    columns = torch.where(torch.rand(b, 1) < 0.5, columns.flip(1), columns)
    index = torch.arange(b)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def images_per_second(network: str, width: int, size: int, batch: int, steps: int, models: int, repeats: int = 2) -> float:
    """Training images per second of ``models`` networks trained one after another (best of ``repeats``).

    Each step: gather, poison with a patch, crop and flip, forward, backward, SGD with momentum and weight decay; channels-last.
    """
    torch.manual_seed(0)
    rows = batch * steps
    images = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)
    stamped = images.clone()
    stamped[:, :, -3:, -3:] = 255
    labels = torch.randint(0, 10, (rows,))
    poisoned = torch.rand(rows) < 0.1
    labels[poisoned] = 0

    def train() -> None:
        net = NETWORKS[network](10, width).to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        order = torch.randperm(rows)
        for i in range(steps):
            index = order[i * batch : (i + 1) * batch]
            x = torch.where(poisoned[index, None, None, None], stamped[index], images[index])
            x = ((augment(x).float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), labels[index]).backward()
            optimiser.step()

    train()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(models):
            train()
        best = min(best, time.perf_counter() - start)
    return models * rows / best
