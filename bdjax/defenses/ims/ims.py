"""IMS: soft masks that keep the clean task, while the network of the inverse masks loses it and keeps to the backdoor."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.channels import clipped, split
from bdjax.defenses.ims.networks import ADAMW, Network, agree, disagree, factors, perturbation
from bdjax.defenses.reads import reads
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import steps as run_steps
from bdjax.train.loops import until
from bdjax.types import Array, Bool, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables


class Config(NamedTuple):
    """Static configuration."""

    start_rounds: int = 100  # at most, without perturbed images
    search_rounds: int = 200  # at most, with them, and no pull on the selections; 0 = without this stage
    settle_rounds: int = 200  # at most, with both; 0 = without
    batch: int = 256
    inner_steps: int = 20  # of the perturbations
    patience: int = 25  # rounds without progress that a stage bears
    hard_mask: bool = False  # the final factors are rounded to 0 or 1


class IMSHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.02)  # of masks and selections
    perturbation_lr: Any = np.float32(1e-3)
    weight_decay: Any = np.float32(0.01)  # of both optimisers, times their rates
    slope: Any = np.float32(20)  # of the sigmoid between a mask and its factor
    l1: Any = np.float32(10)  # weight of the mean of 1 - selection
    bound: Any = np.float32(1)  # of a perturbation's largest entry, in pixels of [0, 1]
    progress: Any = np.float32(0.98)  # a round with a loss below this times the best one of its stage makes progress


class IMSTrace(NamedTuple):
    """What happened, round by round: the rounds that each stage may have, one stage after another; NaN where it ended before."""

    loss: Array  # f32[rounds]
    clean: Array  # f32[rounds]: how far the masked network is from the network as it came, on clean images
    inverse: Array  # f32[rounds]: how close the inverse one is to that
    perturbed: Array  # f32[rounds]: the three losses on perturbed images together
    size: Array  # f32[rounds]: largest entry of a perturbation
    selected: Array  # f32[rounds]: mean of the selections, before the step
    kept: Array  # f32[rounds]: mean of the masked network's factors, before the step
    rounds: Array  # i32[3]: rounds made in each stage
    masks: Array  # f32[channels]: what was trained, convolution after convolution in the order of registration
    selections: Array  # f32[channels]
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the round, of those made, in which they did not; -1 = none


PRESETS = {"corrected": Config(), "reference": Config()}


@reads("convs")
def ims(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Learn a mask m and a selection s per convolution channel, for two networks that are inverse to each other.

    With h(t) = σ(slope (t - 1/2)) the outputs of convolutions are multiplied by h(m) + s (1 - h(m)) in the masked network M and
    by h(1 - m) + s (1 - h(1 - m)) in the inverse one I: s = 1 shares a channel, s = 0 gives it to M (m = 1) or I (m = 0). R is
    the network as it came, o = softmax · softmax of two of them, agree = mean -ln(o + 1e-8), disagree = mean -ln(1 - o + 1e-8).
    Per round, on a fresh batch, each image is perturbed: x' = x + δ, δ from 0 by ``inner_steps`` steps of AdamW down
    agree(I(x'), R(x')) + disagree(R(x'), R(x)), |δ| <= bound. Then a step of AdamW moves m and s, in [0, 1] and from 1, down
    agree(M(x), R(x)) + disagree(I(x), R(x)) + agree(M(x'), R(x)) + agree(I(x'), R(x')) + disagree(I(x'), R(x)) + l1 mean(1 - s).
    The first stage does without x', the second without l1; each starts AdamW afresh and ends after more than ``patience`` rounds
    without progress. Eval mode, no labels, weights never change: M with its soft factors is the result.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference", which are the same here.

    Returns:
      A defense with hyper-parameters :class:`IMSHyper`, masks {convolution: factors f[d]} and trace :class:`IMSTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: K. Dunnett, R. Arablouei, D. Miller, V. Dedeoglu, R. Jurdak, "Backdoor Mitigation via Invertible Pruning Masks",
      NeurIPS 2025, arXiv 2509.15497; settings of its published code.
    Differs: nothing that changes the result. 1 - s has the slope 0 at s = 1 in all stages, as |1 - s| has in PyTorch: a shared
      channel is released by the other losses alone. AdamW's decay is PyTorch's default, which nothing there overrides, and moves
      m alone in the first round. Perturbed images are not cut to [0, 1], as there. Convolutions inside squeeze-and-excitation are
      multiplied before their gates, which a factor of 0 leaves half open. The published code keeps the masks and no network, and
      runs further networks in every round, for its log. Factors near 0 are not 0, unless ``hard_mask`` rounds them.
    """
    config = configure(PRESETS, config, "ims", profile)
    at_least("ims", config, start_rounds=1, search_rounds=0, settle_rounds=0, batch=1, inner_steps=1, patience=0)
    lengths = config.start_rounds, config.search_rounds, config.settle_rounds
    start, search = _stages(model, config, (0,)), _stages(model, config, [number for number in (1, 2) if lengths[number]])

    @jax.jit
    def begin(key: Key, view: DefenderView, hyper: Any) -> tuple[_Shared, tuple[State, Array, Array]]:
        assert view.clean is not None
        ones = jnp.concatenate(list(_channels(model, view.variables).values()))
        state = descent.begin(ADAMW, {"params": {"masks": ones, "selections": ones}}, hyper, measured=0)
        history = jnp.full((len(BY_ROUND), sum(lengths)), jnp.nan, jnp.float32)
        shared = _Shared(stream(key, Stream.ORDER), view.variables, view.clean, hyper)
        return shared, (state, history, jnp.zeros(3, jnp.int32))

    @jax.jit
    def end(variables: Variables, carry: tuple[State, Array, Array], hyper: Any) -> Defended:
        state, history, rounds = carry
        free = state.variables["params"]
        keep, _ = factors(free, hyper.slope)
        masks = split(jnp.round(keep) if config.hard_mask else keep, _channels(model, variables))
        params = tree.scale_convs(variables["params"], masks)
        last = [free[name].astype(jnp.float32) for name in ("masks", "selections")]
        after = {"rounds": rounds, "masks": last[0], "selections": last[1], "alive": state.alive, "stopped": state.stopped}
        trace = IMSTrace(**dict(zip(BY_ROUND, history, strict=True)), **after)
        return Defended({**variables, "params": params}, masks, trace)

    def defend(key: Key, view: DefenderView, hyper: IMSHyper) -> Defended:
        hyper = jax.tree.map(jnp.asarray, hyper)
        shared, carry = begin(key, view, hyper)
        return end(view.variables, search(shared, start(shared, carry)), hyper)

    return Defense(defend, IMSHyper(), frozenset({"clean"}), config)


BY_ROUND = IMSTrace._fields[:7]  # what the trace has of every round


class _Shared(NamedTuple):
    key: Key
    variables: Variables
    clean: CleanSet
    hyper: Any


class _Progress(NamedTuple):
    state: State
    history: Array  # f32[BY_ROUND, rounds of all stages]
    rounds: Array  # i32[3]: made in each stage
    stage: Array  # i32[]: which of those that run
    best: Array  # f[]: loss of the last round of this stage that made progress
    missed: Array  # i32[]: rounds since then


def _stages(model: Model, config: Config, numbers: Sequence[int]) -> Callable[..., Any]:
    """``stages(shared, carry) -> carry`` of stages, one after another; the carry is (state, history, rounds i32[3]).

    How many rounds there are depends on the data: a while-loop, whose rounds are steps of a scan whatever the model's loop is.
    """
    all_lengths = np.array([config.start_rounds, config.search_rounds, config.settle_rounds], np.int32)
    chosen = np.array(numbers, np.int32)
    first, length = (np.cumsum(all_lengths, dtype=np.int32) - all_lengths)[chosen], all_lengths[chosen]
    pulled = np.array([1, 0, 1], np.float32)[chosen]
    loop, round_ = model.loop._replace(kind="scan"), _round(model, config, perturbed=0 not in numbers)

    def going(now: _Progress) -> Bool[Array, ""]:
        return (now.stage < len(numbers)) & now.state.alive

    def step(shared: _Shared, now: _Progress) -> _Progress:
        number = jnp.asarray(chosen)[now.stage]
        at = jnp.asarray(first)[now.stage] + now.rounds[number]
        now = run_steps(round_, now, (at[None], jnp.asarray(pulled)[now.stage][None]), shared, loop)
        now = now._replace(rounds=now.rounds.at[number].add(1))
        over = (now.rounds[number] >= jnp.asarray(length)[now.stage]) | (now.missed > config.patience)
        return jax.tree.map(functools.partial(jnp.where, over), opened(shared, now), now)

    def opened(shared: _Shared, now: _Progress) -> _Progress:
        fresh = descent.restarted(now.state, ADAMW, shared.hyper)
        return _Progress(fresh, now.history, now.rounds, now.stage + 1, jnp.full_like(now.best, jnp.inf), jnp.int32(0))

    def stages(shared: _Shared, carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        if not numbers:
            return carry
        worst = jnp.asarray(jnp.inf, at_least_float32(carry[0].variables["params"]["masks"].dtype))
        now = opened(shared, _Progress(*carry, jnp.int32(-1), worst, jnp.int32(0)))
        return until(going, functools.partial(step, shared), now, int(length.sum()))[:3]

    return stages


def _channels(model: Model, variables: Variables) -> Masks:
    """A vector over the channels of each convolution, in the order of registration, in which flat vectors have them."""
    return tree.full_masks(variables["params"], model.arch.convs, "kernel")


def _network(model: Model, shared: _Shared, factor: Float[Array, " d"] | None = None) -> Network:
    """The network as it came; with a ``factor`` of all channels, the one whose convolutions are multiplied by it."""
    params = shared.variables["params"]
    if factor is not None:
        params = tree.scale_convs(params, split(factor, _channels(model, shared.variables)))

    def chances(images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        logits = model.apply({**shared.variables, "params": params}, images).logits
        return jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))

    return chances


def _round(model: Model, config: Config, perturbed: bool) -> Callable[[_Shared, _Progress, tuple[Array, Array]], _Progress]:
    def round_(shared: _Shared, now: _Progress, x: tuple[Int[Array, ""], Float[Array, ""]]) -> _Progress:
        number, pulled = x
        clean, hyper, free = shared.clean, shared.hyper, now.state.variables["params"]
        network = functools.partial(_network, model, shared)
        rows, mask = (each[0] for each in epoch_plan(step_key(shared.key, number), training_rows(clean), config.batch))
        images = to_float(clean.images[rows]).astype(free["masks"].dtype)
        count, original = images.shape[0], network()
        seen, size = original(images), jnp.zeros((), images.dtype)
        if perturbed:
            inverse = network(factors(free, hyper.slope)[1])
            delta = perturbation(original, inverse, images, mask, seen, hyper, config.inner_steps)
            there, size = original(images + delta), jnp.max(jnp.abs(delta))
            images = jnp.concatenate([images, images + delta])

        def loss(free: Any) -> tuple[Float[Array, ""], Float[Array, " numbers"]]:
            keep, invert = factors(free, hyper.slope)
            masked, inverse = network(keep)(images), network(invert)(images)
            close = masked_mean(agree(masked[:count], seen), mask)
            apart = masked_mean(disagree(inverse[:count], seen), mask)
            shaken = jnp.zeros_like(close)
            if perturbed:
                masked, inverse = masked[count:], inverse[count:]
                shaken = masked_mean(agree(masked, seen) + agree(inverse, there) + disagree(inverse, seen), mask)
            s = free["selections"].astype(close.dtype)
            # Without a slope at 1 itself, where |1 - s| has one in JAX.
            pull = pulled.astype(s.dtype) * hyper.l1.astype(s.dtype) * jnp.mean(jnp.where(s < 1, 1 - s, 0))
            total = close + apart + shaken + pull
            values = total, close, apart, shaken, size, jnp.mean(s), jnp.mean(keep)
            return total, jnp.stack([value.astype(jnp.float32) for value in values])

        (value, values), gradient = jax.value_and_grad(loss, has_aux=True)(free)
        state = descent.descend(now.state, ADAMW, hyper, hyper.lr, gradient, value[None], mask, project=clipped)
        better = value < hyper.progress.astype(value.dtype) * now.best
        best, missed = jnp.where(better, value, now.best), jnp.where(better, 0, now.missed + 1)
        return now._replace(state=state, history=now.history.at[:, number].set(values), best=best, missed=missed)

    return round_
