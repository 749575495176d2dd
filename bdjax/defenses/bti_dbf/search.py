"""BTI-DBF's search: a generator learns to change in images what the network sees but does not need for clean predictions.

First the generator learns to copy images. Then, in every round, a mask of the features learns which ones are benign, the
generator learns to change the others, its images vote for the target, and the network may unlearn what it draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.configure import at_least
from bdjax.defenses.batches import epoch_plan, training_rows
from bdjax.defenses.bti_dbf.generator import Generator, generator
from bdjax.defenses.bti_dbf.phases import benign_share, change_of, decoupling, generating, pretraining, voting, with_features
from bdjax.defenses.tuning import interruptible
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State, columns
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import ADAM, PLAIN
from bdjax.train.schedules import constant
from bdjax.types import Array, CleanSet, Float, Int, Key, Model, Variables

SPACES = ("pixel", "normalised")


class Rules(NamedTuple):
    """Static rules of the inversion."""

    pretrain_epochs: int = 50
    rounds: int = 5
    mask_epochs: int = 20  # per round
    generator_epochs: int = 30  # per round
    batch: int = 128
    generator_width: int = 32  # channels at full resolution
    generator_levels: int = 4  # halvings of the image, at most
    bound_space: str = "pixel"  # how an image's change is measured: in quarters of the range, or "normalised"


def checked(rules: Rules, owner: str) -> Rules:
    """The rules, if all are in range.

    Raises:
      UserError: one is not; ``owner`` is whose they are.
    """
    choose(f"{owner}.bound_space", rules.bound_space, SPACES)
    counts = [field for field, value in rules._asdict().items() if isinstance(value, int)]
    at_least(owner, rules, **dict.fromkeys(counts, 1))
    return rules


class Rate(NamedTuple):
    """What a constant schedule reads."""

    lr: Array


class History(NamedTuple):
    """What happened, epoch after epoch and round after round."""

    pretrain: Array  # f32[pre-training epochs]: mean of the whole loss
    mask: Array  # f32[rounds * mask epochs]: mean cross-entropy on benign features alone less that on the others alone
    generator: Array  # f32[rounds * generator epochs]: mean of the whole loss
    image: Array  # f32[rounds * generator epochs]: of the mean squared change of the images
    benign: Array  # f32[rounds * generator epochs]: of that of the benign features
    others: Array  # f32[rounds * generator epochs]: of that of the other features
    detected: Array  # i32[rounds]: the class that most generated images are given
    share: Array  # f32[rounds]: how many of them


class Found(NamedTuple):
    """What the search leaves."""

    network: State  # the classifier's
    generator: Any  # its parameters
    target: Array  # i32[]: the class detected in the first round
    history: History
    unlearning: tuple[Array, ...]  # the means of the unlearning, each f32[rounds * epochs]; empty without it


Tuning = tuple[State, Any]  # what :func:`bdjax.defenses.tuning.interruptible` carries: a network, and its schedule's state
Interruptible = tuple[Callable[..., Tuning], Callable[..., tuple[Tuning, Array]]]  # its ``begin`` and ``go_on``


class _Phases(NamedTuple):
    """The trainings of the search, each ``begin`` and ``go_on``."""

    copy: Interruptible  # of the generator, before the rounds
    decouple: Interruptible  # of the mask
    generate: Interruptible  # of the generator, in the rounds
    unlearn: Interruptible | None  # of the network


class _Shared(NamedTuple):
    """What all rounds read."""

    key: Key
    clean: CleanSet
    present: Array  # bool[n]: training rows
    rates: tuple[Rate, Rate]  # of the generator and of the mask
    hyper: Any


_Carry = tuple[Tuning, Tuning, Array]  # the network, the generator, the target i32[]


def searcher(model: Model, rules: Rules, unlearn: Interruptible | None = None) -> Callable[..., Found]:
    """Build ``search(key, variables, clean: CleanSet, hyper) -> Found``.

    Args:
      model: network.
      rules: :func:`checked` ones.
      unlearn: ``begin`` and ``go_on`` of :func:`bdjax.defenses.tuning.interruptible`, run at the end of every round with
        ``hyper`` and the generator's parameters as ``extra``; None leaves the network as it is.

    Raises:
      UserError: images too small.
    """
    draw = generator(model.spec, rules.generator_width, rules.generator_levels)
    phases = _phases(model, rules, draw, unlearn)
    one_round = _round(model, rules, phases, draw)

    @jax.jit
    def start(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        initial, first, rest = jax.random.split(key, 3)
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        params = jax.tree.map(lambda p: p.astype(dtype), draw.init(initial))
        drawing = phases.copy[0]({"params": params, "batch_stats": {}}, hyper)
        return drawing, first, rest, training_rows(clean), (Rate(hyper.generator_lr), Rate(hyper.mask_lr))

    @jax.jit
    def open_rounds(variables: Variables, drawing: Tuning, hyper: Any) -> _Carry:
        """The states of network and generator, whose optimiser is a new one, and no target."""
        network = unlearn[0](variables, hyper) if unlearn else (descent.begin(PLAIN, variables, hyper, 0), ())
        return _after(network, drawing), _after(phases.generate[0](drawing[0].variables, hyper), drawing), jnp.int32(0)

    def search(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Found:
        hyper = jax.tree.map(jnp.asarray, hyper)
        drawing, first, rest, present, rates = start(key, variables, clean, hyper)
        shared = _Shared(rest, clean, present, rates, hyper)
        drawing, copying = phases.copy[1](first, drawing, clean, present, rates[0], (variables, hyper))
        carry: _Carry = open_rounds(variables, drawing, hyper)
        carry, means = run_epochs(lambda c, number: one_round(shared, c, number), carry, rules.rounds, model.loop)
        network, drawing, target = carry
        return Found(network[0], drawing[0].variables["params"], target, *_history(copying, means))

    return search


def _phases(model: Model, rules: Rules, draw: Generator, unlearn: Interruptible | None) -> _Phases:
    change = change_of(model.spec, rules.bound_space == "normalised")
    common: dict[str, Any] = {"batch": rules.batch, "schedule": constant(), "optimiser": ADAM}
    loss = pretraining(model, draw, change)
    copy = interruptible(model, epochs=rules.pretrain_epochs, gradient=loss, measured=1, **common)
    loss = generating(model, draw, change)
    generate = interruptible(model, epochs=rules.generator_epochs, gradient=loss, measured=3, **common)
    decouple = interruptible(model, epochs=rules.mask_epochs, gradient=decoupling(model), **common)
    return _Phases(copy, decouple, generate, unlearn)


def _round(model: Model, rules: Rules, phases: _Phases, draw: Generator) -> Callable[..., Any]:
    """``one_round(shared, carry, number) -> (carry, means)``, the means those that :func:`_history` reads."""
    opened, votes_for = _opening(model, phases), _ballot(model, rules, draw)
    follow = jax.jit(_after)

    def one_round(shared: _Shared, carry: _Carry, number: Int[Array, ""]) -> tuple[_Carry, Any]:
        network, drawing, target = carry
        _, clean, present, (drawing_rate, mask_rate), hyper = shared
        masking, keys, now = opened(shared.key, number, network, hyper)
        masking, decoupled = phases.decouple[1](keys[0], masking, clean, present, mask_rate, now)
        drawing, extra = _masked(masking, drawing, now, number, target, hyper)
        drawing, generated = phases.generate[1](keys[1], drawing, clean, present, drawing_rate, extra)
        params = drawing[0].variables["params"]
        votes = votes_for(keys[2], now, params, clean, hyper)
        network, target, detected = _counted(votes, number, target, network, drawing)
        if phases.unlearn is None:
            return (network, drawing, target), (decoupled, generated, detected)
        network, unlearned = phases.unlearn[1](keys[3], network, clean, present, hyper, params)
        return (network, follow(drawing, network), target), (decoupled, generated, unlearned, detected)

    return one_round


def _opening(model: Model, phases: _Phases) -> Callable[..., Any]:
    """``opened(key, number, network, hyper) -> (a mask drawn anew, keys of the round's phases, the network's variables)``."""

    @jax.jit
    def opened(key: Key, number: Int[Array, ""], network: Tuning, hyper: Any) -> Any:
        drawing, *keys = jax.random.split(step_key(key, number), 5)
        variables = network[0].variables
        images = jax.ShapeDtypeStruct((1, *model.spec.image_shape), jnp.float32)
        shape = jax.eval_shape(lambda v, x: with_features(model, v, x)[1], dict(variables), images).shape[1:]
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        free = {"params": {"mask": jax.random.normal(drawing, shape, dtype)}, "batch_stats": variables["batch_stats"]}
        return _after(phases.decouple[0](free, hyper), network), keys, variables

    return opened


def _ballot(model: Model, rules: Rules, draw: Generator) -> Callable[..., Array]:
    """``votes_for(key, variables, params, clean, hyper)``: how many generated images are given each class."""
    vote = voting(model, draw)

    @jax.jit
    def plan(key: Key, clean: CleanSet) -> Any:
        rows, mask = epoch_plan(stream(key, Stream.ORDER), training_rows(clean), rules.batch)
        return jnp.zeros(model.spec.classes, jnp.int32), (rows, mask, jnp.arange(len(rows), dtype=jnp.int32))

    def votes_for(key: Key, variables: Variables, params: Any, clean: CleanSet, hyper: Any) -> Int[Array, " k"]:
        zero, batches = plan(key, clean)
        votes: Array = run_steps(vote, zero, batches, (key, variables, params, clean, hyper), model.loop)
        return votes

    return votes_for


@jax.jit
def _masked(
    masking: Tuning, drawing: Tuning, variables: Variables, number: Int[Array, ""], target: Int[Array, ""], hyper: Any
) -> Any:
    """The generator's state, and what its loss reads: a copy of the network, the benign share of its features, the target."""
    learned = masking[0].variables
    copy = {**variables, "batch_stats": learned["batch_stats"]}  # the generator sees the copy's statistics
    return _after(drawing, masking), (copy, benign_share(learned["params"]["mask"]), target, number > 0, hyper)


@jax.jit
def _counted(votes: Int[Array, " k"], number: Int[Array, ""], target: Int[Array, ""], network: Tuning, drawing: Tuning) -> Any:
    """The network's state, the target, which is that of the first round, and (the class with most votes, its share of them)."""
    detected = jnp.argmax(votes).astype(jnp.int32)
    share = jnp.max(votes).astype(jnp.float32) / jnp.maximum(jnp.sum(votes), 1).astype(jnp.float32)
    return _after(network, drawing), jnp.where(number == 0, detected, target), (detected, share)


@jax.jit
def _history(copying: Float[Array, "epochs j"], means: Any) -> tuple[History, tuple[Array, ...]]:
    """The history, and the means of the unlearning, of the phases' means f32[epochs, 1 + j], in the rounds f32[rounds, …]."""
    *phases, votes = means
    decoupled, generated, *unlearned = (columns(each.reshape(-1, each.shape[-1])) for each in phases)
    return History(copying[:, 0], *decoupled, *generated, *votes), unlearned[0] if unlearned else ()


def _after(carry: Tuning, other: Tuning) -> Tuning:
    """A carry that counts on from another one, and stands still where that does."""
    state, rate = carry
    return state._replace(step=other[0].step, alive=other[0].alive, stopped=other[0].stopped), rate
