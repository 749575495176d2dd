"""The small ``cnn`` and the parts of its fine-tuning written out in 64-bit numbers: no masks, no scans, no hooks.

Also a dense network of a few weights, for facts that hold in any network and should compile in no time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.defenses.batches import epoch_plan
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.folded_linear import pool
from bdjax.types import ArchSpec, Loop, Model, Output

EPS = 1e-5  # added to the variance in the norms
LAYERS = (("1", 1), ("2", 2), ("3", 2))  # number, stride


def plain(*trees):
    """Trees of NumPy arrays: what is done to them one by one need not be compiled."""
    found = tuple(jax.tree.map(np.asarray, tree) for tree in trees)
    return found if len(found) > 1 else found[0]


def pixels(clean):
    """The images that a network gets, f64[n h w c] in [0, 1]."""
    return jnp.asarray((np.asarray(clean.images).astype(np.float32) / np.float32(255)).astype(np.float64))


def batches(key, rows, batch, epochs):
    """The row numbers of each batch of each epoch, without padding: [epoch][batch] -> i[b]."""
    return [filled(*_plan(key, np.int32(e), rows, batch)) for e in range(epochs)]


def shuffled(key, rows, batch):
    """The row numbers of each batch of the one pass that a method draws from ``key``."""
    return filled(*_plan(key, None, rows, batch))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _plan(key, epoch, rows, batch):
    key = stream(key, Stream.ORDER)
    return epoch_plan(key if epoch is None else step_key(key, epoch), jnp.ones(rows, bool), batch)


def filled(order, mask):
    """The rows of each batch that has any."""
    return [rows[m > 0] for rows, m in zip(np.asarray(order), np.asarray(mask), strict=True) if m.any()]


def _convolve(x, kernel, stride):
    at = np.arange(0, x.shape[1], stride)[:, None] + np.arange(3)[None]  # of the padded rows, and columns, that a position sees
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.einsum("bhiwjc,ijcd->bhwd", x[:, at][:, :, :, at], kernel)


def forward(params, images, spec, statistics=None, eps=EPS, factors=None):
    """(logits f[b k], outputs of the three stages, {norm: {"mean", "var"}} of this batch).

    Without ``statistics`` in train mode: the norms take the batch's mean and biased variance; what is returned for the running
    ones is the mean and the unbiased variance. With them in eval mode. Outputs of convolutions are multiplied by ``factors``.
    """
    x = (images - jnp.asarray(spec.mean).reshape(1, 1, 1, 3)) / jnp.asarray(spec.std).reshape(1, 1, 1, 3)
    stages, measured = [], {}
    for layer, stride in LAYERS:
        x = _convolve(x, params[f"conv{layer}"]["kernel"], stride)
        if factors is not None:
            x = x * factors[f"conv{layer}"].reshape(1, 1, 1, -1)
        flat = x.reshape(-1, x.shape[-1])
        n = flat.shape[0]
        mean = flat.sum(0) / n
        square = ((flat - mean[None]) ** 2).sum(0)
        measured[f"bn{layer}"] = {"mean": mean, "var": square / (n - 1)}
        if statistics is None:
            variance = square / n
        else:
            mean, variance = statistics[f"bn{layer}"]["mean"], statistics[f"bn{layer}"]["var"]
        norm = params[f"bn{layer}"]
        flat = (flat - mean[None]) / jnp.sqrt(variance + eps)[None] * norm["scale"][None] + norm["bias"][None]
        x = jnp.where(flat > 0, flat, 0.0).reshape(x.shape)
        stages.append(x)
    logits = x.sum((1, 2)) / (x.shape[1] * x.shape[2]) @ params["linear"]["kernel"] + params["linear"]["bias"][None]
    return logits, stages, measured


def cross_entropies(logits, labels):
    """-log softmax at the labels, f[b]."""
    top = logits.max(1, keepdims=True)
    picked = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jnp.log(jnp.exp(logits - top).sum(1)) + top[:, 0] - picked


def descend(params, buffer, slope, lr, momentum, decay):
    """One step of SGD: (new parameters, new buffer)."""
    buffer = jax.tree.map(lambda b, g, p: momentum * b + (g + decay * p), buffer, slope, params)
    return jax.tree.map(lambda p, b: p - lr * b, params, buffer), buffer


def follow(running, measured, weight=0.1, times=()):
    """Running statistics after a batch; ``times`` (norm: so many times the same batch), 1 where it says nothing."""
    repeats, after = dict(times), {}
    for norm, old in running.items():
        for _ in range(repeats.get(norm, 1)):
            old = {name: (1 - weight) * old[name] + weight * measured[norm][name] for name in ("mean", "var")}
        after[norm] = old
    return after


def dense_logits(params, images):
    """What :func:`dense` computes, and the map [b 2 2 hidden] on the way."""
    n, h, w, c = images.shape
    x = images.reshape(n, 2, h // 2, 2, w // 2, c).mean((2, 4))
    x = jnp.einsum("bhwc,cd->bhwd", x, params["first"]["kernel"]) + params["first"]["bias"].reshape(1, 1, 1, -1)
    x = jnp.maximum(x, 0)
    return x.mean((1, 2)) @ params["last"]["kernel"] + params["last"]["bias"][None], x


@functools.cache
def dense(spec, hidden=3, *, folded=None):
    """Pixels averaged in the quarters of the image, a linear layer to ``hidden``, ReLU, averages, a linear layer; no norms.

    Args:
      spec: data set facts.
      hidden: width.
      folded: other than None: the image is averaged to one position, which the first layer sees as VGG's does on a 1x1 map: its
        folded layer (True) or the whole one, 49 copies of each colour (False).
    """
    arch = ArchSpec((), (), (), ("first", "last"), ("stage1",), "features", copies=49.0 if folded else 1.0)
    shapes = {"first": (3 * 49 if folded is False else 3, hidden), "last": (hidden, spec.classes)}

    def init(key):
        layers = {}
        for i, (name, shape) in enumerate(shapes.items()):
            kernel = jax.random.normal(jax.random.fold_in(key, i), shape)
            layers[name] = {"kernel": kernel, "bias": jnp.full(shape[1:], 0.1, jnp.float32)}
        return {"params": layers, "batch_stats": {}}

    init = jax.jit(init)

    def apply(variables, images, *, train=False, plug_train=False, mask=None, key=None, record=(), start=None):
        params = variables["params"]
        images = images.astype(params["last"]["kernel"].dtype)
        if folded is None:
            logits, x = dense_logits(params, images)
        else:
            x = pool(jnp.mean(images, (1, 2), keepdims=True), folded=folded)
            x = jnp.maximum(x @ params["first"]["kernel"] + params["first"]["bias"][None], 0)
            logits = x @ params["last"]["kernel"] + params["last"]["bias"][None]
        taps = dict((item, x) if isinstance(item, str) else (item[0], item[1](x, mask)) for item in record)
        return Output(logits, variables, taps)

    return Model(init, apply, lambda **fields: None, spec, arch, "dense", hidden, Loop())
