"""Input-aware in PyTorch and float64, written from the paper's description and apart from the package's arithmetic."""

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # small tensors
CONVOLUTIONS, POOLED, DOUBLED = 13, (2, 4, 6), (7, 9, 11)  # 1-based; a map shrinks or grows after these


def tensor(array):
    return torch.tensor(np.ascontiguousarray(array, np.float64))


def channels_first(images):
    return tensor(images).permute(0, 3, 1, 2)


class Network(torch.nn.Module):
    """The hourglass, with the parameters and statistics of one of ours; pixels in, a pattern or a mask out."""

    def __init__(self, params, statistics, spec, twice):
        super().__init__()
        self.mean, self.std = (tensor(v).reshape(1, -1, 1, 1) for v in (spec.mean, spec.std))
        self.twice = twice
        self.convs, self.norms = torch.nn.ModuleList(), torch.nn.ModuleList()
        for i in range(1, CONVOLUTIONS + 1):
            kernel = np.asarray(params[f"conv{i}"]["kernel"]).transpose(3, 2, 0, 1)
            conv = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, dtype=torch.float64)
            conv.weight.data, conv.bias.data = tensor(kernel), tensor(params[f"conv{i}"]["bias"])
            norm = torch.nn.BatchNorm2d(kernel.shape[0], eps=1e-5, momentum=0.05, dtype=torch.float64)
            norm.weight.data, norm.bias.data = (tensor(params[f"bn{i}"][k]) for k in ("scale", "bias"))
            norm.running_mean, norm.running_var = (tensor(statistics[f"bn{i}"][k]) for k in ("mean", "var"))
            self.convs.append(conv)
            self.norms.append(norm)

    def normalised(self, x):
        return (x - self.mean) / self.std

    def forward(self, x):
        x = self.normalised(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = norm(conv(x))
            x = torch.relu(x) if i < CONVOLUTIONS else torch.tanh(x)
            if i in POOLED:
                x = F.max_pool2d(x, 2)
            if i in DOUBLED:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.tanh(x) if self.twice else x
        return x / (2 + 1e-7) + 0.5

    def tree(self):
        """(params, statistics) with our names."""
        params, statistics = {}, {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            params[f"conv{i}"] = {"kernel": conv.weight.detach().permute(2, 3, 1, 0).numpy(), "bias": conv.bias.detach().numpy()}
            params[f"bn{i}"] = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
            statistics[f"bn{i}"] = {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()}
        return params, statistics


def soft(m):
    return torch.tanh(20 * (m - 0.5)) / (2 + 1e-7) + 0.5


def apart(a, b):
    return ((a - b) ** 2).flatten(1).mean(1).sqrt()


def phase_one(start, spec, images, orders, config):
    """``images`` u8[n h w c]; ``orders`` [epochs, steps, 2, batch]: rows of the two loaders."""
    net = Network(start["params"], start["batch_stats"], spec, config.double_tanh)
    adam = torch.optim.Adam(net.parameters(), config.lr, betas=(0.5, 0.9))
    drops = [len(orders) * 2 // 5, len(orders) * 4 // 5]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, drops, 0.1)
    losses, densities = [], []
    for epoch in orders:
        found = []
        for rows in epoch:
            x1, x2 = (channels_first(images[r].astype(np.float32) / np.float32(255)) for r in rows)
            net(x1)  # once for nothing, as published: it moves the running statistics
            m1, m2 = soft(net(x1)), soft(net(x2))
            spread = (apart(net.normalised(x1), net.normalised(x2)) / (apart(m1, m2) + 1e-7)).mean()
            loss = config.norm_weight * torch.relu(m1 - config.density).mean() + config.div_weight * spread
            adam.zero_grad()
            loss.backward()
            adam.step()
            found.append((loss.item(), m1.mean().item()))
        schedule.step()
        for values, column in zip((losses, densities), np.mean(found, 0), strict=True):
            values.append(column)
    params, statistics = net.tree()
    return {"params": params, "batch_stats": statistics, "loss": losses, "density": densities}


def phase_two(trigger, spec, images, others, labels, numbers, places, head, accumulate, twice=True, lr=0.01):
    """Steps on batches ``images``, ``others`` [steps b h w c] with ``numbers`` triggered images each, for class 0, and as many
    with foreign patterns from ``places`` on; ``head`` is a linear classifier that is not trained."""
    pattern = Network(trigger["generator"], trigger["statistics"], spec, twice)
    mask = Network(trigger["mask"]["params"], trigger["mask"]["batch_stats"], spec, twice).eval()
    adam = torch.optim.Adam(pattern.parameters(), lr, betas=(0.5, 0.9))
    losses, mixtures = [], []
    for x, z, n in zip(images, others, numbers, strict=True):
        x, z = channels_first(x), channels_first(z)
        mixed, target = x.clone(), torch.tensor(labels, dtype=torch.long)
        partners = slice(places, places + n)
        p1, p2 = pattern(x[:n]), pattern(z[partners])
        with torch.no_grad():
            t1, t2 = soft(mask(x[:n])), soft(mask(z[partners]))
        mixed[:n] = x[:n] + (p1 - x[:n]) * t1
        mixed[partners] = x[partners] + (p2 - x[partners]) * t2
        target[:n] = 0
        far = apart(pattern.normalised(x[:n]), pattern.normalised(z[partners]))
        spread = (far / (apart(pattern.normalised(p1), pattern.normalised(p2)) + 1e-7)).mean()
        seen = torch.where(torch.isnan(mixed), torch.zeros_like(mixed), mixed)
        loss = F.cross_entropy(seen.permute(0, 2, 3, 1).flatten(1) @ tensor(head), target) + spread
        if not accumulate:
            adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(spread.item())
        mixtures.append(mixed.detach().permute(0, 2, 3, 1).numpy())
    generator, statistics = pattern.tree()
    return {"generator": generator, "statistics": statistics, "losses": losses, "mixed": mixtures}
