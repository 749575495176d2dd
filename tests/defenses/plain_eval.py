"""The small network in eval and train mode, Adam, and Neural Cleanse's search, for the written-out loops of I-BAU, SAU and NC."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.defenses.plain_network import EPS, cross_entropies, filled, follow, forward


def network(spec, params, statistics, images, train=False):
    """Logits f64[b k] of images in [0, 1], and what the statistics become."""
    logits, _, measured = forward(params, images, spec, None if train else statistics)
    return logits, follow(statistics, measured) if train else statistics


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - jnp.log(jnp.exp(z).sum(1, keepdims=True))


class Adam:
    """Adam; or AMSGrad, which divides by the largest v so far, the v before the correction of its bias."""

    def __init__(self, params, b1=0.9, b2=0.999, largest=True):
        self.b1, self.b2, self.largest, self.t = b1, b2, largest, 0
        self.m, self.v, self.peak = (jax.tree.map(lambda p: np.zeros(p.shape), params) for _ in range(3))

    def step(self, params, gradient, lr):
        self.t += 1
        self.m = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * np.asarray(g), self.m, gradient)
        self.v = jax.tree.map(lambda v, g: self.b2 * v + (1 - self.b2) * np.asarray(g) ** 2, self.v, gradient)
        self.peak = jax.tree.map(np.maximum, self.peak, self.v)

        def moved(p, m, v):
            denominator = np.sqrt(v) / np.sqrt(1 - self.b2**self.t) + 1e-8
            return np.asarray(p) - lr * m / (1 - self.b1**self.t) / denominator

        return jax.tree.map(moved, params, self.m, self.peak if self.largest else self.v)


@functools.cache
def _full_batch(spec, lr):
    """A step of descent on all rows."""

    def step(variables, images, labels):
        def loss(params):
            z, after = network(spec, params, variables["batch_stats"], images, True)
            return cross_entropies(z, labels).mean(), after

        slope, after = jax.grad(loss, has_aux=True)(variables["params"])
        return {"params": jax.tree.map(lambda p, g: p - lr * g, variables["params"], slope), "batch_stats": after}

    return jax.jit(step)


def trained(spec, variables, images, labels, steps=60, lr=0.3):
    """The network after full-batch descent, in train mode, so that its classes differ."""
    step = _full_batch(spec, lr)
    for _ in range(steps):
        variables = step(variables, images, labels)
    return variables


def knowing(spec, variables, rows):
    """:func:`trained` on these rows, computed in 64 bits and kept in 32."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), variables)
        found = trained(spec, wide, jnp.asarray(np.asarray(rows.images) / 255), rows.labels)
        narrow = jax.tree.map(lambda x: np.asarray(x, np.float32), found)
    return jax.tree.map(jnp.asarray, narrow)


def steered(success, size, cost, multiplier, threshold, patience, early_patience, early_ratio):
    """Neural Cleanse's controller, epoch by epoch, until it stops: the state after each epoch."""
    best = early_best = np.inf
    up = down = waited = 0
    up_seen = down_seen = have = False
    recorded = []
    for acc, reg in zip(success, size, strict=True):
        keep = done = False
        if acc >= threshold and reg < best:
            keep, best = True, reg
        if np.isfinite(best):
            waited = waited + 1 if best >= early_ratio * early_best else 0
        early_best = min(best, early_best)
        if up_seen and down_seen and waited >= early_patience:
            done = True
        else:
            if acc >= threshold:
                up, down = up + 1, 0
            else:
                up, down = 0, down + 1
            if up >= patience:
                up, cost, up_seen = 0, cost * multiplier, True
            elif down >= patience:
                down, cost, down_seen = 0, cost / multiplier**1.5, True
            if not have and not keep:
                keep = True
        have = have or keep
        names = ("cost", "up", "down", "up_seen", "down_seen", "waited", "best", "early_best", "keep", "done")
        recorded.append(dict(zip(names, (cost, up, down, up_seen, down_seen, waited, best, early_best, keep, done), strict=True)))
        if done:
            break
    return recorded


def searched(spec, variables, images, plans, rules, hyper):
    """Neural Cleanse's search, class by class, over the batches of each epoch."""

    def squash(x):
        return jnp.tanh(x) / (2 + 1e-7) + 0.5

    @jax.jit
    def slope_of(free, x, target, cost):
        def loss(free):
            m, q = squash(free["mask"]), squash(free["pattern"])
            z, _ = network(spec, variables["params"], variables["batch_stats"], (1 - m)[None] * x + (m * q)[None])
            y = jnp.full(len(x), target)
            return cross_entropies(z, y).mean() + cost * m.sum(), ((z.argmax(1) == target).mean(), m.sum())

        return jax.grad(loss, has_aux=True)(free)

    h, w, c = spec.image_shape
    found = {name: [] for name in ("mask", "pattern", "norm", "success", "size", "cost")}
    for target in range(spec.classes):
        free = {"mask": jnp.ones((h, w, 1)), "pattern": jnp.ones((h, w, c))}
        adam, kept = Adam(free, 0.5, 0.9, largest=False), None
        success, size, costs, cost = [], [], [], float(hyper.cost)
        for plan in plans:
            seen = []
            for rows in filled(*plan):
                slope, recorded = slope_of(free, images[rows], target, cost)
                free = adam.step(free, slope, float(hyper.search_lr))
                seen.append([float(x) for x in recorded])
            costs.append(cost)
            for column, value in zip((success, size), np.mean(seen, 0), strict=True):
                column.append(value)
            rest = rules.patience, rules.early_patience, rules.early_ratio
            last = steered(success, size, float(hyper.cost), float(hyper.multiplier), float(hyper.threshold), *rest)[-1]
            cost = last["cost"]
            if last["keep"]:
                kept = {name: np.asarray(squash(x)) for name, x in free.items()}
            if last["done"]:
                break
        gone = [np.nan] * (len(plans) - len(costs))
        values = kept["mask"][..., 0], kept["pattern"], kept["mask"].sum(), success + gone, size + gone, costs + gone
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return {name: np.array(v).T if name in ("success", "size", "cost") else np.array(v) for name, v in found.items()}


def planted(variables):
    """A network of width 4 made by hand, on pixels that nothing normalises, and 40 images and labels that it knows.

    The brightest colour decides the class, none is class 0; but 3x3 white pixels anywhere send an image to class 0. Channels: the
    detector of these, and the three colours as they are. Of ``variables`` the shapes count alone.
    """
    empty = {name: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables[name]) for name in ("params", "batch_stats")}
    params, statistics = empty["params"], empty["batch_stats"]
    for layer in (1, 2, 3):
        params[f"bn{layer}"]["scale"][:], statistics[f"bn{layer}"]["var"][:] = 1, 1 - EPS
    params["conv1"]["kernel"][..., 0], params["bn1"]["bias"][0] = 1, -20  # the sum of 27 values, less 20
    for c in (1, 2, 3):
        params["conv1"]["kernel"][1, 1, c - 1, c] = 1
        params["linear"]["kernel"][c, c] = 20
    for layer in (2, 3):
        kernel = params[f"conv{layer}"]["kernel"]
        kernel[:, :, 0, 0] = 1  # wherever it is
        kernel[1, 1, (1, 2, 3), (1, 2, 3)] = 1
    params["linear"]["kernel"][0, 0], params["linear"]["bias"][0] = 10, 8
    images, labels = np.random.default_rng(0).uniform(0.1, 0.3, (40, 8, 8, 3)), np.arange(40, dtype=np.int32) // 10
    for k in (1, 2, 3):
        images[labels == k, ..., k - 1] += 0.45
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics}), (255 * images).astype(np.uint8), labels
