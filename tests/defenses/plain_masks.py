"""Masks of the norms' channels written out in 64-bit numbers: networks under them, thresholds, and the masks a method rounds."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.defenses.plain_eval import planted
from tests.defenses.plain_network import EPS, forward, plain

NORMS = ("bn1", "bn2", "bn3")


def clipped(masks):
    """Masks cut to [0, 1]."""
    return {norm: np.clip(m, 0, 1) for norm, m in masks.items()}


def ones(params):
    """A mask of 1 per channel of each norm."""
    return {norm: np.ones(params[norm]["scale"].shape) for norm in NORMS}


def under(params, scales, biases=None):
    """Parameters whose norms have their scales, and biases, multiplied by these."""
    changed = dict(params)
    for norm, factor in scales.items():
        bias = params[norm]["bias"]
        changed[norm] = {"scale": params[norm]["scale"] * factor, "bias": bias if biases is None else bias * biases[norm]}
    return changed


@functools.cache
def _network(spec):
    return jax.jit(lambda params, statistics, images, eps: forward(params, images, spec, statistics, eps))


def logits(spec, params, statistics, images, eps=EPS):
    """What the network computes in eval mode."""
    return _network(spec)(params, statistics, images, eps)[0]


def correct(spec, variables, images, labels, eps=EPS):
    """How many of the images the network gets right in eval mode."""
    found = logits(spec, variables["params"], variables["batch_stats"], images, eps)
    return int((np.asarray(found).argmax(1) == np.asarray(labels)).sum())


def pruned(masks, threshold, strict):
    """Keep factors of 0 and 1: gone is what, rounded to four decimals, lies below a threshold in 1 / 10,000, or at it too."""
    whole = {norm: np.rint(np.asarray(m) * 10_000).astype(int) for norm, m in masks.items()}
    return {norm: (q >= threshold if strict else q > threshold).astype(np.float64) for norm, q in whole.items()}


def levels(spec, variables, masks, thresholds, strict, images, labels, eps=EPS):
    """Keep factors, number of pruned channels and right rows of the network as it is, then of each threshold."""
    variables = plain(variables)
    keeps = [ones(variables["params"]), *(pruned(masks, t, strict) for t in thresholds)]
    counts = [int(sum((np.asarray(k) == 0).sum() for k in keep.values())) for keep in keeps]
    networks = [{**variables, "params": under(variables["params"], keep)} for keep in keeps]
    return keeps, counts, [correct(spec, network, images, labels, eps) for network in networks]


def overhear(monkeypatch, method):
    """A list that gets the masks which a method rounds, as they were before; for one that is built afterwards."""
    module = sys.modules[f"bdjax.defenses.{method}"]
    heard, rounded = [], module.rounded

    def hear(given):
        heard.append({norm: x.view(np.float64)[..., 0] if x.dtype == np.uint32 else x for norm, x in given.items()})

    def bits(x):  # a callback would get 64-bit numbers in 32
        return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype == jnp.float64 else x

    def listening(masks):
        jax.debug.callback(lambda m: hear({norm: np.array(x) for norm, x in m.items()}), jax.tree.map(bits, masks))
        return rounded(masks)

    monkeypatch.setattr(module, "rounded", listening)
    return heard


def rest(variables):
    """All that a pruned scale leaves alone."""
    params = {name: {k: v for k, v in layer.items() if k != "scale"} for name, layer in variables["params"].items()}
    return {**variables, "params": params}


def murky(rows):
    """Rows whose images are so noisy that a network which knows the clean ones errs, and the more the more of it is pruned."""
    noise = np.random.default_rng(9).normal(0, 45, rows.images.shape)
    return rows._replace(images=jnp.asarray(np.clip(np.asarray(rows.images) + noise, 0, 255).astype(np.uint8)))


def backdoored(spec, variables):
    """:func:`planted` with the running statistics of its images and of triggered ones, the images, their labels, all triggered.

    Scales and biases make up for the statistics: the function is the same in eval mode, and train mode has a network to go on.
    """
    start, images, labels = planted(variables)
    triggered = images.copy()
    triggered[:, 3:6, 3:6] = 255
    seen = np.concatenate([images, triggered[:10]]) / np.float32(255)
    _, _, measured = _network(spec)(start["params"], start["batch_stats"], seen, EPS)
    params, measured = plain(dict(start["params"]), measured)
    for norm in NORMS:
        mean, var = measured[norm]["mean"], measured[norm]["var"]
        params[norm] = {"scale": np.sqrt(var + np.float32(EPS)), "bias": params[norm]["bias"] + mean}
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": measured}), images, labels, triggered
