"""What methods that score or mask the channels of norms share: thresholds, the curve of a mask, the published norms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.data.augment import crop_flip, to_float
from bdjax.keys import step_key
from bdjax.train.loops import steps
from bdjax.types import Array, Bool, CleanSet, Curve, Float, Int, Key, Masks, Model, Num, Shaped, Variables

GRID = 10_000  # soft masks are rounded to 1 / GRID before they are compared, so that thresholds are integers
PUBLISHED_EPS, PUBLISHED_MOMENTUM = 1e-5, 0.1  # of the norms into which the survey's published code copies a network


def limit(scores: Float[Array, " d"], u: Float[Array, ""], leave_out_non_finite: bool | None) -> Float[Array, ""]:
    """mean + u std over the channels, std with n - 1; with ``leave_out_non_finite`` those of the finite scores."""
    counted = jnp.isfinite(scores) if leave_out_non_finite else jnp.ones_like(scores, bool)
    n = jnp.sum(counted, dtype=scores.dtype)
    mean = jnp.sum(jnp.where(counted, scores, 0)) / n
    variance = jnp.sum(jnp.where(counted, jnp.square(scores - mean), 0)) / (n - 1)
    return mean + u.astype(scores.dtype) * jnp.sqrt(variance)


def clipped(masks: Masks) -> Masks:
    """Masks {norm: f[d]} cut to [0, 1]."""
    return jax.tree.map(lambda m: jnp.clip(m, 0, 1), masks)


def rounded(masks: Masks) -> Masks:
    """Soft masks {norm: f[d]} in [0, 1] as whole numbers i32[d] of 1 / :data:`GRID`."""
    return {norm: jnp.round(m * GRID).astype(jnp.int32) for norm, m in masks.items()}


def kept(grid: Masks, limit: Int[Array, ""], dtype: Any) -> Masks:
    """0/1 masks {norm: [d]} of a ``dtype`` that prune the channels whose number from :func:`rounded` is at most ``limit``.

    A limit of -1 prunes none.
    """
    return {norm: (q > limit).astype(dtype) for norm, q in grid.items()}


def pruned_by_limit(grid: Masks, limits: Int[Array, " L"]) -> Int[Array, " L"]:
    """How many channels each of the limits prunes, from masks that :func:`rounded` gave."""
    every = jnp.concatenate(list(grid.values()))
    return jnp.sum(every[None] <= limits[:, None], 1, dtype=jnp.int32)


def curve(model: Model, batch: int, augment: bool) -> Callable[..., Array]:
    """Build ``correct(key, variables, clean, wanted bool[n], grid, limits i32[L]) -> i32[L]``.

    Counts the wanted rows that the network gets right in eval mode when the scales of the channels below each limit are 0.

    Args:
      model: network.
      batch: rows at once.
      augment: crop and flip the rows, drawn anew for each limit.
    """
    spec = model.spec

    def step(shared: Any, correct: Int[Array, " L"], x: tuple[Array, Array, Array, Array]) -> Int[Array, " L"]:
        key, variables, clean, grid, limits = shared
        rows, counted, level, trip = x
        images = clean.images[rows]
        if augment:
            images = crop_flip(step_key(key, trip), images, spec.pad, spec.flip)
        params = variables["params"]
        masks = kept(grid, limits[level], jax.tree.leaves(params)[0].dtype)
        logits = model.apply({**variables, "params": tree.mask_norms(params, masks, bias=False)}, to_float(images)).logits
        right = counted & (jnp.argmax(logits, -1).astype(clean.labels.dtype) == clean.labels[rows])
        return correct.at[level].add(jnp.sum(right, dtype=jnp.int32))

    @jax.jit
    def plan(wanted: Bool[Array, " n"], limits: Int[Array, " L"]) -> tuple[Int[Array, " L"], Any]:
        n, count = wanted.shape[0], limits.shape[0]
        size = min(batch, n)
        trips = -(-n // size)
        # The wanted rows first: where others are many, most batches count nothing.
        order = jnp.pad(jnp.argsort(~wanted, stable=True).astype(jnp.int32), (0, trips * size - n))
        counted = wanted[order] & (jnp.arange(trips * size) < n)
        levels = jnp.repeat(jnp.arange(count, dtype=jnp.int32), trips)
        each = (order.reshape(trips, size), counted.reshape(trips, size))
        tiled = jax.tree.map(lambda a: jnp.tile(a, (count, 1)), each)
        return jnp.zeros(count, jnp.int32), (*tiled, levels, jnp.arange(count * trips, dtype=jnp.int32))

    def correct(
        key: Key, variables: Variables, clean: CleanSet, wanted: Bool[Array, " n"], grid: Masks, limits: Int[Array, " L"]
    ) -> Int[Array, " L"]:
        zero, xs = plan(wanted, limits)
        return steps(step, zero, xs, (key, variables, clean, grid, limits), model.loop)

    return correct


def threshold_curve(norms: tuple[str, ...], limits: tuple[int, ...], step: int, model: Model, eps: float) -> Curve:
    """The curve of a method whose trace has ``masks``, soft ones, norm after norm.

    Args:
      norms: addresses in the order of the trace.
      limits: per level, the largest number of :func:`rounded` that is pruned.
      step: between the thresholds of two levels, in 1 / :data:`GRID`; level 0, the network as it is, lies one below 0.
      model: network of the variables.
      eps: of the norms of the network that was judged, see :func:`seen_through`.
    """

    def at(variables: Variables, masks: Num[Array, " n"], level: Int[Array, ""]) -> Variables:
        params = variables["params"]
        grid = rounded(split(masks, {norm: tree.get(params, norm)["scale"] for norm in norms}))
        keep = kept(grid, jnp.asarray(limits, jnp.int32)[level], jax.tree.leaves(params)[0].dtype)
        return seen_through(model, eps, {**variables, "params": tree.mask_norms(params, keep, bias=False)})

    return Curve("threshold", tuple(round((i - 1) * step / GRID, 4) for i in range(len(limits))), ("masks",), at)


LEVELS_OF_U = tuple(round(6 - 0.25 * i, 2) for i in range(27))  # standard deviations: from pruning hardly any channel to many


def outlier_curve(norms: tuple[str, ...], leave_out_non_finite: bool | None) -> Curve:
    """The curve of a method whose trace has ``scores``, norm after norm, of which those beyond mean + u std are pruned.

    Args:
      norms: addresses in the order of the trace.
      leave_out_non_finite: as :func:`limit` takes it.
    """

    def at(variables: Variables, flat: Num[Array, " n"], level: Int[Array, ""]) -> Variables:
        params = variables["params"]
        scores = split(flat, {norm: tree.get(params, norm)["scale"] for norm in norms})
        u = jnp.asarray(LEVELS_OF_U, jnp.float32)[level]
        masks = tree.keep_below(scores, {norm: limit(score, u, leave_out_non_finite) for norm, score in scores.items()})
        return {**variables, "params": tree.mask_norms(params, masks, bias=True)}

    return Curve("standard deviations u", LEVELS_OF_U, ("scores",), at)


def split(flat: Shaped[Array, " d"], like: dict[str, Array]) -> dict[str, Array]:
    """A vector over channels, layer after layer, as {address: [d_i]}, with the lengths of ``like``."""
    ends = np.cumsum([len(each) for each in like.values()])[:-1]
    return dict(zip(like, jnp.split(flat, ends), strict=True))


def published_norms(model: Model) -> Model:
    """The network with the norms into which the survey's published code copies it: another ε and momentum for MobileNet."""
    if (model.norm_eps, model.norm_momentum) == (PUBLISHED_EPS, PUBLISHED_MOMENTUM):
        return model
    return model.rebuild(norm_eps=PUBLISHED_EPS, norm_momentum=PUBLISHED_MOMENTUM)


def seen_through(model: Model, eps: float, variables: Variables) -> Variables:
    """Variables with which ``model`` computes in eval mode what it would with the given ones and this ``eps`` in its norms."""
    if model.norm_eps == eps:
        return variables
    factors = {}
    for norm in model.arch.norms:
        var = tree.get(variables["batch_stats"], norm)["var"]
        factors[norm] = jnp.sqrt(var + model.norm_eps) / jnp.sqrt(var + eps)
    return {**variables, "params": tree.scale_norms(variables["params"], factors, {})}
