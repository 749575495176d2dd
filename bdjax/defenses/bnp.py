"""BNP: prune the channels whose running statistics differ most from those of clean images."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, training_rows
from bdjax.defenses.channels import limit, outlier_curve, published_norms
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32, row
from bdjax.train.loops import steps as run_steps
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Key, Model, Variables


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    batch: int = 256
    all_rows: bool | None = None  # statistics of all clean rows, not of the last batch of an epoch
    augment: bool | None = None  # crop and flip them
    log_factor: float | None = None  # of ln(running variance / clean variance): 1/2 in the divergence of two normal distributions
    leave_out_non_finite: bool | None = None  # of mean and standard deviation; else one such channel keeps its whole layer
    published_eps: bool | None = None  # MobileNet is measured with ε = 1e-5 in its norms


class BNPHyper(NamedTuple):
    """Traced hyper-parameters."""

    u: Any = np.float32(3)  # f32[]: standard deviations above the layer's mean


class BNPTrace(NamedTuple):
    """What was measured, one entry per norm (or channel) in execution order."""

    threshold: Array  # f[layers]
    largest: Array  # f[layers]: the largest score of the layer
    pruned: Array  # i32[layers]: channels pruned
    scores: Array  # f[channels]: layer after layer


class Moments(NamedTuple):
    """Sums and extremes over rows and positions at the input of a norm, about its running mean."""

    weight: Array  # f[]: rows and positions
    first: Array  # f[d]
    second: Array  # f[d]
    low: Array  # f[d]
    high: Array  # f[d]; where it equals ``low`` the channel has no variance, whatever the sums round to


U = {"tiny_imagenet": 4}  # per data set; others take 3
PRESETS = {
    "corrected": Config(all_rows=True, augment=False, log_factor=0.5, leave_out_non_finite=True, published_eps=False),
    "reference": Config(all_rows=False, augment=True, log_factor=1.0, leave_out_non_finite=False, published_eps=True),
}


def bnp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Prune channels whose input is distributed differently on clean images than while the network was trained.

    With (m1, v1) mean and unbiased variance of a norm's input over clean rows and positions in eval mode, and (m2, v2) its
    running statistics, a channel scores D = ln(v2/v1)/2 + (v1 + (m1 - m2)²)/(2 v2) - 1/2, the Kullback-Leibler divergence of two
    normal distributions. Channels with D > mean(D) + u std(D), the unbiased standard deviation over their layer, get scale and
    bias 0. One shot: every layer is measured in the network as it is.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`BNPHyper` (u = 4 on Tiny-ImageNet), masks {norm: keep f[d]} and trace
      :class:`BNPTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: R. Zheng, R. Tang, J. Li, L. Liu, "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022; settings of K.
      Dunnett et al., arXiv 2411.11200, 2024.
    Differs: "reference" repeats the survey's published code: each batch overwrites what the one before it measured, so the last,
      incomplete batch of one shuffled and augmented epoch counts alone; the logarithm lacks its 1/2; a channel without variance
      keeps its whole layer; MobileNet is measured with ε = 1e-5. "corrected" takes all rows as they are.
    """
    config = configure(PRESETS, config, "bnp", profile)
    at_least("bnp", config, batch=1)
    measured = published_norms(model) if config.published_eps else model
    measure = _measurer(measured, config)

    @jax.jit
    def prune(variables: Variables, moments: dict[str, Moments], hyper: BNPHyper) -> tuple[Any, Any, BNPTrace]:
        statistics = variables["batch_stats"]
        scores = {norm: divergence(m, tree.get(statistics, norm), config.log_factor or 0.0) for norm, m in moments.items()}
        limits = {norm: limit(score, hyper.u, config.leave_out_non_finite) for norm, score in scores.items()}
        masks = tree.keep_below(scores, limits)
        trace = BNPTrace(
            jnp.stack(list(limits.values())),
            jnp.stack([jnp.max(score) for score in scores.values()]),
            jnp.stack(list(tree.pruned_count(masks).values())),
            jnp.concatenate(list(scores.values())),
        )
        return tree.mask_norms(variables["params"], masks, bias=True), masks, trace

    def defend(key: Key, view: DefenderView, hyper: BNPHyper) -> Defended:
        assert view.clean is not None
        moments = measure(key, view.variables, view.clean)
        params, masks, trace = prune(view.variables, moments, jax.tree.map(jnp.asarray, hyper))
        return Defended({**view.variables, "params": params}, masks, trace)

    along = outlier_curve(model.arch.norms, config.leave_out_non_finite)
    drawn = config.augment or not config.all_rows
    return Defense(
        defend, BNPHyper(np.float32(U.get(model.spec.name, 3))), frozenset({"clean"}), config, curve=along, keyed=drawn
    )


def divergence(moments: Moments, running: Mapping[str, Array], log_factor: float | Float[Array, ""]) -> Float[Array, " d"]:
    """The score of every channel of a norm; with ``log_factor`` 1/2 a divergence."""
    weight, first, second, low, high = moments
    apart = first / weight  # m1 - m2
    variance = jnp.where(high > low, second - jnp.square(first) / weight, 0) / (weight - 1)
    ratio = jnp.log(running["var"].astype(variance.dtype) / variance)
    return log_factor * ratio + (variance + jnp.square(apart)) / (2 * running["var"].astype(variance.dtype)) - 0.5


def _measurer(model: Model, config: Config) -> Callable[..., dict[str, Moments]]:
    """``measure(key, variables, clean) -> {norm: Moments}`` over the training rows, in eval mode."""
    spec, norms, plan = model.spec, model.arch.norms, _planner(model, config.batch)

    def step(shared: Any, moments: dict[str, Moments], x: tuple[Array, Array, Array]) -> dict[str, Moments]:
        key, variables, clean = shared
        rows, mask, trip = x
        images = clean.images[rows]
        if config.augment:
            images = crop_flip(step_key(stream(key, Stream.AUGMENT), trip), images, spec.pad, spec.flip)
        record = tuple((f"{norm}/in", _about(tree.get(variables["batch_stats"], norm)["mean"])) for norm in norms)
        taps = model.apply(variables, to_float(images), mask=mask, record=record).taps
        found = {norm: taps[f"{norm}/in"] for norm in norms}
        if config.all_rows:
            return {norm: _joined(moments[norm], found[norm]) for norm in norms}
        return jax.tree.map(lambda new, old: jnp.where(jnp.sum(mask) > 0, new, old), found, moments)

    def measure(key: Key, variables: Variables, clean: CleanSet) -> dict[str, Moments]:
        zero, batches = plan(key, variables, clean)
        return run_steps(step, zero, batches, (key, variables, clean), model.loop)

    return measure


def _planner(model: Model, batch: int) -> Callable[..., Any]:
    """``plan(key, variables, clean)``: the moments of nothing, and the batches of one pass, numbered."""

    @jax.jit
    def plan(key: Key, variables: Variables, clean: CleanSet) -> Any:
        rows, mask = epoch_plan(stream(key, Stream.ORDER), training_rows(clean), batch)
        dtype = at_least_float32(jax.tree.leaves(variables["params"])[0].dtype)
        zero = {}
        for norm in model.arch.norms:
            none = jnp.zeros(tree.get(variables["batch_stats"], norm)["mean"].shape, dtype)
            zero[norm] = Moments(jnp.zeros((), dtype), none, none, none + jnp.inf, none - jnp.inf)
        return zero, (rows, mask, jnp.arange(len(rows), dtype=jnp.int32))

    return plan


def _about(mean: Float[Array, " d"]) -> Callable[[Array, Array | None], Moments]:
    """What is recorded at the input of a norm with this running mean."""

    def measure(x: Float[Array, "b ... d"], mask: Float[Array, " b"] | None) -> Moments:
        wide = at_least_float32(x.dtype)
        weight = jnp.ones((x.shape[0],), wide) if mask is None else mask.astype(wide)
        weight = jnp.broadcast_to(weight.reshape(-1, *(1,) * (x.ndim - 1)), (*x.shape[:-1], 1))
        away, axes = x.astype(wide) - row(mean.astype(wide), x), tuple(range(x.ndim - 1))
        sums = jnp.sum(weight * away, axes), jnp.sum(weight * jnp.square(away), axes)
        low, high = (jnp.where(weight > 0, away, outside) for outside in (jnp.inf, -jnp.inf))
        return Moments(jnp.sum(weight), *sums, jnp.min(low, axes), jnp.max(high, axes))

    return measure


def _joined(a: Moments, b: Moments) -> Moments:
    low, high = jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    return Moments(a.weight + b.weight, a.first + b.first, a.second + b.second, low, high)
