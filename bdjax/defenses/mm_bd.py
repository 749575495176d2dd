"""MM-BD, its mitigation: bound the activations as tightly as the logits on clean images allow."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import ADAM
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Model, Variables

RULES = {"original": (2, 0.1), "survey": (1, 1e-3)}  # the fifth of the epochs after which the weight first moves, learning rate


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 50
    batch: int = 256
    active: bool | None = None  # else the network is returned as it came
    rule: str | None = None  # "original", the paper's learning rate and weight; or the "survey"'s, whose rate changes nothing


class MMBDHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any  # of Adam: 0.1 under the original rule; 1e-3 under the survey's, where bounds hardly move
    weight: Any = np.float32(0.5)  # of the sum of the bounds' norms, at first
    factor: Any = np.float32(1.2)  # by which it grows and shrinks
    tolerance: Any = np.float32(0.05)  # drop of the accuracy that is accepted: from 1, or from that of the network as it came


class MMBDTrace(NamedTuple):
    """What happened while the bounds were trained."""

    loss: Array  # f32[epochs]: mean of the whole loss
    apart: Array  # f32[epochs]: mean squared difference of the logits
    accuracy: Array  # f32[epochs]: of the bounded network on the images of the epoch
    weight: Array  # f32[epochs]: of the norms
    size: Array  # f32[epochs]: sum of the norms at the end of the epoch, those of bounds below 0 too
    start: Array  # f32[sites]: the first bound of every site, the largest activation there
    before: Array  # f32[]: accuracy of the network as it came
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {"corrected": Config(active=True, rule="original"), "reference": Config(active=False, rule="survey")}


def mm_bd(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Give every channel of every activation an upper bound, small enough to hold back a trigger and to leave clean logits alone.

    Each bound starts at the largest activation of its site over all clean images, positions and channels. Adam descends, in eval
    mode, mean (g_Z(x) - f(x))² over rows and logits + weight sum_s ‖Z_s‖_2, where g_Z is the network f with each activation a of
    channel c cut to min(a, max(Z_c, 0)): a bound below 0 acts as 0. The weight moves after the epochs 20, 30 and 40 of 50 (fifths
    of other lengths): it is multiplied by ``factor`` where the accuracy of that epoch, on augmented images, is at least 1 -
    ``tolerance``, else divided by it.

    ``rule="survey"`` has the survey's settings instead. The weight moves after the epochs 10, 20, 30 and 40, and grows where the
    accuracy lies above that of the network as it came less ``tolerance``. Its learning rate is 1e-3: a bound moves by
    about 0.001 a step, 0.05 in the 50 steps that a small clean set gives, which is less than 1 % of where it starts once
    activations reach 5. Next to nothing is cut, and the method is the identity or close to it. Any rate can be had with either
    rule, as the hyper-parameter ``lr``.

    Args:
      model: network; the sites are ``model.arch.activations``.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense whose defended variables carry "bounds" {site: f[d]}, at least 0, with hyper-parameters :class:`MMBDHyper` and
      trace :class:`MMBDTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: H. Wang, Z. Xiang, D. J. Miller, G. Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary
      Backdoor Pattern Types Using a Maximum Margin Statistic", IEEE S&P 2024, its mitigation: learning rate, rule of the weight
      and a start per layer; sites of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: "reference" returns the network as it came, at once, as the survey's published code does, which never applies its
      bounds. "corrected" is the paper's method with the survey's sites and images: all activations are bounded, each from the
      largest one of its layer, on crops and flips of all clean images. The paper's code bounds the outputs of the stem and of
      the first two stages, starts at 8, trains on the images as they are, and on those alone that the network classifies
      correctly. A bound below 0 acts as 0 because the published hook on PreActResNet sits before the ReLU, which takes a
      negative cut back to 0. It is the same at every other activation here, SiLU and hard-swish too, where the paper's code and
      the published hooks, which sit behind the activation, would cut to that negative value.
    """
    config = configure(PRESETS, config, "mm_bd", profile)
    at_least("mm_bd", config, epochs=1, batch=1)
    _, lr = RULES[choose("mm_bd.rule", str(config.rule), RULES)]
    look, start, epoch = _looker(model, config.batch), _starter(model), _epoch(model, config)

    def defend(key: Key, view: DefenderView, hyper: MMBDHyper) -> Defended:
        assert view.clean is not None
        clean, hyper = view.clean, jax.tree.map(jnp.asarray, hyper)
        largest, correct = look(key, view.variables, clean)
        carry, before, rows, at = start(view.variables, largest, correct, clean, hyper)
        if not config.active:
            return Defended(view.variables, None, _idle(config.epochs, at, before, hyper.weight))
        shared = (key, view.variables, clean, before, rows, hyper)
        (state, _), by_epoch = run_epochs(lambda carry, number: epoch(shared, carry, number), carry, config.epochs, model.loop)
        trace = MMBDTrace(*(*by_epoch, at, before, state.alive, state.stopped))
        return Defended({**view.variables, "bounds": _acting(state.variables["params"])}, None, trace)

    active = bool(config.active)
    return Defense(defend, MMBDHyper(np.float32(lr)), frozenset({"clean"}), config, keyed=active, edition=1 + active)


@functools.partial(jax.jit, static_argnums=0)
def _plan(batch: int, key: Key, epoch: Int[Array, ""], clean: CleanSet) -> tuple[Int[Array, "trips b"], Float[Array, "trips b"]]:
    return epoch_plan(step_key(stream(key, Stream.ORDER), epoch), training_rows(clean), batch)


def _looker(model: Model, batch: int) -> Callable[..., Any]:
    """``look(key, variables, clean) -> ({site: its largest activation}, rows that are right)``, on images as they are."""
    sites = model.arch.activations

    @jax.jit
    def first_look(key: Key, clean: CleanSet) -> Any:
        largest = {site: jnp.full((), -jnp.inf, jnp.float32) for site in sites}
        return _plan(batch, key, jnp.int32(0), clean), (largest, jnp.int32(0))

    def step(shared: Any, carry: tuple[dict[str, Array], Array], x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> Any:
        variables, clean = shared
        rows, mask = x
        found, correct = carry
        out = model.apply(variables, to_float(clean.images[rows]), mask=mask, record=tuple((site, _largest) for site in sites))
        right = (jnp.argmax(out.logits, -1).astype(clean.labels.dtype) == clean.labels[rows]) & (mask > 0)
        return {site: jnp.maximum(found[site], out.taps[site]) for site in sites}, correct + jnp.sum(right, dtype=jnp.int32)

    def look(key: Key, variables: Variables, clean: CleanSet) -> Any:
        batches, none = first_look(key, clean)
        return run_steps(step, none, batches, (variables, clean), model.loop)

    return look


def _largest(x: Float[Array, "b ..."], mask: Float[Array, " b"] | None) -> Float[Array, ""]:
    """The largest activation in the rows that count."""
    assert mask is not None
    there = mask.reshape(-1, *(1,) * (x.ndim - 1)) > 0
    return jnp.max(jnp.where(there, x, -jnp.inf)).astype(jnp.float32)


def _starter(model: Model) -> Callable[..., Any]:
    """``start(variables, largest, correct, clean, hyper) -> ((state, weight), accuracy, rows, first bound of every site)``."""
    spec, sites = model.spec, model.arch.activations

    @jax.jit
    def start(variables: Variables, largest: dict[str, Array], correct: Array, clean: CleanSet, hyper: Any) -> Any:
        images = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
        taps = jax.eval_shape(lambda v, x: model.apply(v, x, record=sites).taps, dict(variables), images)
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        # Without a row there is nothing to hold on to: no bound.
        first = {site: jnp.where(jnp.isneginf(z), jnp.inf, z) for site, z in largest.items()}
        bounds = {site: jnp.full(taps[site].shape[-1], first[site], dtype) for site in sites}
        state = descent.begin(ADAM, {"params": bounds}, hyper, measured=2)
        rows = jnp.maximum(jnp.sum(training_rows(clean), dtype=jnp.int32), 1)
        before = correct.astype(jnp.float32) / rows.astype(jnp.float32)
        return (state, hyper.weight), before, rows, jnp.stack(list(first.values()))

    return start


def _epoch(model: Model, config: Config) -> Callable[..., Any]:
    """``epoch(shared, (state, weight), number)``: one pass of Adam over the rows, after which the weight may move."""
    tighten, close = _tightening(model), _closer(config)

    def epoch(shared: Any, carry: tuple[State, Array], number: Int[Array, ""]) -> Any:
        key, variables, clean, before, rows, hyper = shared
        state, weight = carry
        plan = _plan(config.batch, key, number, clean)
        state = run_steps(tighten, state, plan, (key, variables, clean, weight, hyper), model.loop)
        return close(state, weight, before, rows, number, hyper)

    return epoch


def _tightening(model: Model) -> Callable[..., State]:
    """A step of Adam on the bounds: logits as they were, bounds as small as may be."""
    spec = model.spec

    def tighten(shared: Any, state: State, x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> State:
        key, variables, clean, weight, hyper = shared
        rows, mask = x
        images = to_float(crop_flip(step_key(stream(key, Stream.AUGMENT), state.step), clean.images[rows], spec.pad, spec.flip))
        goal, labels = model.apply(variables, images).logits, clean.labels[rows]

        def loss(bounds: Any) -> tuple[Float[Array, ""], Float[Array, " 2"]]:
            z = model.apply({**variables, "bounds": bounds}, images).logits
            apart = masked_mean(jnp.mean(jnp.square(z - goal), -1), mask)
            right = jnp.sum((jnp.argmax(z, -1).astype(labels.dtype) == labels).astype(mask.dtype) * mask)
            total = apart + weight.astype(apart.dtype) * _size(bounds).astype(apart.dtype)
            return total, jnp.stack([apart, right.astype(apart.dtype)])

        (value, parts), slope = jax.value_and_grad(loss, has_aux=True)(state.variables["params"])
        values = jnp.concatenate([value[None], parts])
        return descent.descend(state, ADAM, hyper, hyper.lr, slope, values, mask)

    return tighten


def _size(bounds: Any) -> Float[Array, ""]:
    """sum_s ‖Z_s‖_2, whose gradient at Z_s = 0, where a site is never active, is 0."""
    squares = jnp.stack([jnp.sum(jnp.square(z)) for z in bounds.values()])
    return jnp.sum(jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0))


def _closer(config: Config) -> Callable[..., Any]:
    """``close(state, weight, before, rows, epoch, hyper)``: what the trace tells of an epoch, and the weight of the next."""
    first, _ = RULES[str(config.rule)]
    marks = [config.epochs * i // 5 for i in range(first, 5) if config.epochs * i >= 5]  # the weight moves after these epochs

    @jax.jit
    def close(state: State, weight: Array, before: Array, rows: Array, epoch: Array, hyper: Any) -> Any:
        accuracy = state.total[2] / rows.astype(jnp.float32)
        state, means = descent.close(state)
        tolerance = hyper.tolerance.astype(accuracy.dtype)
        enough = accuracy >= 1 - tolerance if config.rule == "original" else accuracy > before - tolerance
        moves = jnp.any(epoch == jnp.array(marks, jnp.int32))
        after = jnp.where(moves, jnp.where(enough, weight * hyper.factor, weight / hyper.factor), weight)
        by_epoch = (means[0], means[1], accuracy, weight, _size(state.variables["params"]).astype(jnp.float32))
        return (state, after), by_epoch

    return close


@jax.jit
def _acting(bounds: Any) -> Any:
    """The bounds as they act, so that whoever reads them needs no rule for those below 0."""
    return jax.tree.map(lambda z: jnp.maximum(z, 0), bounds)


@functools.partial(jax.jit, static_argnums=0)
def _idle(epochs: int, start: Float[Array, " sites"], before: Float[Array, ""], weight: Float[Array, ""]) -> MMBDTrace:
    """The trace of a network that is returned as it came."""
    none = jnp.zeros_like(before, shape=(epochs,))
    return MMBDTrace(none, none, none, none, none, start, before, jnp.isfinite(before), jnp.full_like(before, -1, jnp.int32))
