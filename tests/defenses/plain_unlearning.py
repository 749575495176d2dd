"""Grad-Prune on the small network written out in 64-bit numbers: no masks, no padding, no compiled loops.

Also a network of two convolutions that see one pixel, for what holds in any network and should compile in no time.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bdjax.defenses.batches import epoch_plan
from bdjax.keys import Stream, step_key, stream
from bdjax.models.build import build
from bdjax.nn.layers import Conv, Linear, NormAct, tap
from bdjax.types import ArchSpec, Loop
from tests.defenses.plain_masks import plain
from tests.defenses.plain_network import cross_entropies, descend, filled, follow, forward

CONVS = ("conv1", "conv2", "conv3")


@functools.cache
def _programs(spec):
    def entropies(params, statistics, x, y):
        logits, _, measured = forward(params, x, spec, statistics)
        return cross_entropies(logits, y), (logits.argmax(1), measured)

    def total(params, statistics, x, y):
        return entropies(params, statistics, x, y)[0].sum()

    def in_train_mode(params, x, y):
        entropy, (_, measured) = entropies(params, None, x, y)
        return entropy.mean(), measured

    def both(params, x, there, y):
        (one, measured), (other, seen) = (in_train_mode(params, images, y) for images in (x, there))
        return one + other, (measured, seen)

    return {
        "judge": jax.jit(entropies),
        "eval": jax.jit(jax.grad(total)),
        "train": jax.jit(jax.grad(in_train_mode, has_aux=True)),
        "both": jax.jit(jax.value_and_grad(both, has_aux=True)),
    }


class Unlearning:
    """One member: rows are numbers into the whole clean set, of which padding is never read."""

    def __init__(self, spec, start, clean, images, triggered, hyper, config):
        """``start`` is the network, ``images`` and ``triggered`` are f64[n h w c] in [0, 1], ``config`` that of the defense."""
        self.run, self.hyper, self.config = _programs(spec), hyper, config
        self.params, self.statistics = plain(start["params"], start["batch_stats"])
        self.x, self.there, self.y = np.asarray(images), np.asarray(triggered), np.asarray(clean.labels)
        self.role = np.asarray(clean.role)

    def batches(self, key, number, role):
        rows, mask = epoch_plan(step_key(stream(key, Stream.ORDER), number), jnp.asarray(self.role == role), self.config.batch)
        return filled(rows, mask)

    def judge(self, params, statistics, images, key, number):
        """Wrong validation rows, and their loss."""
        wrong, losses, count = 0, [], 0
        for rows in self.batches(key, number, 2):
            entropy, (found, _) = self.run["judge"](params, statistics, images[rows], self.y[rows])
            wrong, count = wrong + int((np.asarray(found) != self.y[rows]).sum()), count + len(rows)
            losses.append(np.asarray(entropy))
        if self.config.batch_weighting == "per_image":
            return wrong, np.concatenate(losses).mean()
        return wrong, sum(batch.mean() for batch in losses)

    def scores(self, params, statistics, key, number):
        """Mean absolute gradients per channel of each convolution, and the running statistics afterwards."""
        slope, batches = None, self.batches(key, number, 1)
        for i, rows in enumerate(batches):
            x, y = self.there[rows], self.y[rows]
            if i == 0 and self.config.score_bn == "first_batch_train":
                found, measured = plain(*self.run["train"](params, x, y))
                statistics, scale = follow(statistics, measured), 1
            else:
                found, scale = plain(self.run["eval"](params, statistics, x, y)), 1 / len(rows)
            if self.config.batch_weighting == "per_image":
                scale = scale * len(rows) / sum(map(len, batches))
            found = jax.tree.map(lambda g, s=scale: g * s, found)
            slope = found if slope is None else jax.tree.map(np.add, slope, found)
        return {conv: np.abs(slope[conv]["kernel"]).mean((0, 1, 2)) for conv in CONVS}, statistics

    def prune(self, params, conv, j):
        """The parameters without filter ``j`` of a convolution, and without its norm's scale; the bias too if it is its own."""
        params = jax.tree.map(np.copy, params)
        params[conv]["kernel"][..., j] = 0
        norm = params[f"bn{conv[-1]}"]
        norm["scale"][j] = 0
        if self.config.companion == "own_bn":
            norm["bias"][j] = 0
        return params

    def within(self, errors, before):
        count, tolerance = int((self.role == 2).sum()), round(float(self.hyper.tolerance) * 10_000)
        if self.config.integer_threshold:
            return 10_000 * (errors - before) < tolerance * count
        return (count - before) / count - (count - errors) / count < tolerance / 10_000

    def rounds(self, key):
        """(what is kept, its clean validation loss, the course by round, why it ended)."""
        ordering, judging, _ = jax.random.split(key, 3)
        params, statistics, gone = self.params, self.statistics, []
        _, least = self.judge(params, statistics, self.there, judging, 0)
        before, clean = self.judge(params, statistics, self.x, judging, 0)
        course, best, waited = [(None, None, np.nan, before, least)], (params, statistics, clean, 0, []), 0
        for number in range(1, self.config.rounds + 1):
            scores, statistics = self.scores(params, statistics, ordering, number)
            if self.config.exclude_pruned:
                for conv, j in gone:
                    scores[conv][j] = -np.inf
            conv = max(CONVS, key=lambda c: scores[c].max())
            j = int(scores[conv].argmax())
            if not scores[conv][j] > 0:
                return best, course, "NO_FILTER"
            params, gone = self.prune(params, conv, j), [*gone, (conv, j)]
            errors, clean = self.judge(params, statistics, self.x, judging, number)
            _, loss = self.judge(params, statistics, self.there, judging, number)
            course.append((CONVS.index(conv), j, scores[conv][j], errors, loss))
            if loss < least and self.within(errors, before):
                least, best, waited = loss, (params, statistics, clean, number, gone), 0
            else:
                waited += 1
            if not self.within(errors, before):
                return best, course, "ACCURACY"
            if waited >= self.config.pruning_patience:
                return best, course, "PATIENCE"
        return best, course, "CAP"

    def tune(self, key, params, statistics, least, gone):
        """(parameters, statistics, the losses and validation losses by epoch, which is kept, why it ended)."""
        ordering, judging, _ = jax.random.split(key, 3)
        rates = (float(self.hyper.lr), float(self.hyper.momentum), float(self.hyper.weight_decay))
        buffer, best, waited = jax.tree.map(np.zeros_like, params), (params, statistics, 0), 0
        losses, validated = [], []
        for number in range(1, self.config.epochs + 1):
            of_epoch = []
            for rows in self.batches(ordering, number - 1, 1):
                (value, measured), slope = self.run["both"](params, self.x[rows], self.there[rows], self.y[rows])
                params, buffer = plain(*descend(params, buffer, plain(slope), *rates))
                for seen in plain(*measured):  # clean first
                    statistics = follow(statistics, seen)
                if self.config.freeze_pruned:
                    for conv, j in gone:
                        params = self.prune(params, conv, j)
                of_epoch.append(float(value))
            _, loss = self.judge(params, statistics, self.x, judging, number)
            losses.append(np.mean(of_epoch))
            validated.append(loss)
            if loss < least:
                least, best, waited = loss, (params, statistics, number), 0
            else:
                waited += 1
            if waited >= self.config.tuning_patience:
                return best, losses, validated, "PATIENCE"
        return best, losses, validated, "CAP"


class _Narrow(nn.Module):
    classes: int
    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x, run, start):
        for i, features in ((1, 5), (2, 6)):
            x = Conv(features, 1, i, use_bias=True, bias_init=None, name=f"conv{i}")(x, run)
            x = NormAct(self.eps, self.momentum, name=f"bn{i}")(x, run)
        x = tap(tap(x, "features", run).mean((1, 2)), "head", run)
        return Linear(self.classes, name="linear")(x)


def narrow(spec):
    """Two 1x1 convolutions with bias, as VGG's have one, each with norm and ReLU; averages; a linear layer."""
    pairs = (("bn1", "conv1"), ("bn2", "conv2"))
    registered = tuple(item for norm, conv in pairs for item in (("conv", conv), ("norm", norm)))
    arch = ArchSpec(registered, ("bn1", "bn2"), pairs, ("linear",), ("bn2",), "features")
    network = _Narrow(spec.classes)
    how = dict(norm_eps=1e-5, norm_momentum=0.1, dtype=None, loop=Loop())
    return build(network, factory=narrow, arch=arch, spec=spec, width=5, how=how)
