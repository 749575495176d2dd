"""The same work in PyTorch, for one model: the networks, training, fine-tuning, evaluation. The yardstick; needs torch.

Written as a careful user would: uint8 images rest channels-last on the device, one gather crops and flips a batch, the optimiser
is the fused one, nothing is read back inside a loop.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Rows(NamedTuple):
    """A data set on the device."""

    images: torch.Tensor  # u8[n h w c]
    stamped: torch.Tensor  # u8[n h w c]: triggered copies
    labels: torch.Tensor  # i64[n]
    poisoned: torch.Tensor  # bool[n]


class Sgd(NamedTuple):
    """Settings of SGD; the learning rate falls to 0 with the cosine of the epoch."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


def rows_of(images: torch.Tensor, labels: torch.Tensor, ratio: float) -> Rows:
    """``images`` with a white 3x3 patch as trigger; a random part ``ratio`` of them is poisoned, towards class 0."""
    stamped, poisoned = images.clone(), torch.rand(len(labels), device=images.device) < ratio
    stamped[:, -3:, -3:] = 255
    return Rows(images, stamped, torch.where(poisoned, 0, labels), poisoned)


def augment(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Per-image random crop and flip of u8[b h w c], as one gather."""
    b, h, w, c = images.shape
    at = {"device": images.device}
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    rows = torch.randint(0, 2 * pad + 1, (b, 1), **at) + torch.arange(h, **at)
    columns = torch.arange(w, **at)
    columns = torch.where(torch.rand(b, 1, **at) < 0.5, columns.flip(0), columns) + torch.randint(0, 2 * pad + 1, (b, 1), **at)
    rows = rows + (h + 2 * pad) * torch.arange(b, **at)[:, None]
    index = rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]
    return padded.view(-1, c).index_select(0, index.view(-1)).view(b, h, w, c)


def forward_of(net: nn.Module, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """``f(images u8[b h w c]) -> logits f32[b k]``: normalise, then the network, under autocast if ``dtype`` is not float32."""
    device = next(net.parameters()).device
    shift, scale = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (mean, std))

    def forward(images: torch.Tensor) -> torch.Tensor:
        x = (images.permute(0, 3, 1, 2).float() / 255 - shift) / scale
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(x)
        return logits.float()

    return forward


def train(net: nn.Module, forward: Callable[..., torch.Tensor], rows: Rows, batch: int, epochs: int, sgd: Sgd) -> int:
    """Train on the poisoned rows; each step: gather, choose clean or stamped, crop and flip, forward, backward, SGD.

    Args:
      net: network, changed in place.
      forward: made by :func:`forward_of` from it, or that compiled.
      rows: training rows.
      batch: rows per step; the last incomplete batch of an epoch is dropped.
      epochs: passes over the rows.
      sgd: optimiser.

    Returns:
      Number of images that went through the network.
    """

    def picked(index: torch.Tensor) -> torch.Tensor:
        return augment(torch.where(rows.poisoned[index, None, None, None], rows.stamped[index], rows.images[index]))

    def order(epoch: int) -> Sequence[torch.Tensor]:
        shuffled = torch.randperm(len(rows.labels), device=rows.labels.device)
        return [index for index in shuffled.split(batch) if len(index) == batch]

    return _descend(net, forward, picked, rows.labels, order, epochs, sgd)


def tune(
    net: nn.Module,
    forward: Callable[..., torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    epochs: int,
    sgd: Sgd,
    batches: Sequence[Sequence[torch.Tensor]] | None = None,
) -> int:
    """Fine-tune on a few clean rows, as bdjax.defenses.ft.

    Args:
      net: network, changed in place.
      forward: made by :func:`forward_of` from it, or that compiled.
      images: u8[n h w c].
      labels: i64[n].
      batch: rows per step; the last incomplete batch is kept.
      epochs: passes over the rows, and the cosine's period.
      sgd: optimiser.
      batches: rows i64[b] of every step of every epoch, which are then not augmented; None = shuffled and augmented.

    Returns:
      Number of images that went through the network.
    """

    def picked(index: torch.Tensor) -> torch.Tensor:
        return augment(images[index]) if batches is None else images[index]

    def order(epoch: int) -> Sequence[torch.Tensor]:
        return torch.randperm(len(labels), device=labels.device).split(batch) if batches is None else batches[epoch]

    return _descend(net, forward, picked, labels, order, epochs, sgd)


def _descend(
    net: nn.Module,
    forward: Callable[..., torch.Tensor],
    picked: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    order: Callable[[int], Sequence[torch.Tensor]],
    epochs: int,
    sgd: Sgd,
) -> int:
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay, fused=True)
    done = 0
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = sgd.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for index in order(epoch):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(forward(picked(index)), labels[index]).backward()
            optimiser.step()
            done += len(index)
    return done


@torch.no_grad()
def evaluate(net: nn.Module, forward: Callable[..., torch.Tensor], rows: Rows, batch: int = 512) -> tuple[torch.Tensor, int]:
    """Predict clean and triggered rows: (correct and attacked, i64[2] on the device; number of images through the network)."""
    net.eval()
    found = torch.zeros(2, dtype=torch.int64, device=rows.labels.device)
    for images, stamped, labels in zip(
        rows.images.split(batch), rows.stamped.split(batch), rows.labels.split(batch), strict=True
    ):
        attacked = (forward(stamped).argmax(-1) == 0) & (labels != 0)
        found += torch.stack([(forward(images).argmax(-1) == labels).sum(), attacked.sum()])
    return found, 2 * len(rows.labels)


def images_per_second(network: str, width: int, size: int, batch: int, steps: int, models: int, repeats: int = 2) -> float:
    """Training images per second of ``models`` networks trained eagerly on the CPU, one after another (best of ``repeats``)."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch * steps, size, size, 3), dtype=torch.uint8)
    rows = rows_of(images, torch.randint(0, 10, (batch * steps,)), 0.1)

    def one() -> None:
        net = NETWORKS[network](10, width).to(memory_format=torch.channels_last)
        train(net, forward_of(net, (0.5,) * 3, (0.25,) * 3, torch.float32), rows, batch, 1, Sgd())

    one()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(models):
            one()
        best = min(best, time.perf_counter() - start)
    return models * batch * steps / best
