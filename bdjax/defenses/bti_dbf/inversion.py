"""BTI-DBF's inversion: a generator that changes in an image what the network sees but does not need for clean predictions.

The triggers that it draws serve other methods too: :func:`inverted_triggers`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least
from bdjax.data.augment import to_float, to_uint8
from bdjax.defenses.bti_dbf.generator import generator
from bdjax.defenses.bti_dbf.phases import benign_share, change_of, decoupling, generating, pretraining, voting, with_features
from bdjax.defenses.tuning import epoch_plan, interruptible, training_rows
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State, columns
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import ADAM, PLAIN
from bdjax.train.schedules import constant
from bdjax.types import Array, CleanSet, Key, Model, Variables

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


ONE_ROUND = Rules(rounds=1)


def checked(rules: Rules, owner: str) -> Rules:
    """The rules, if all are in range.

    Raises:
      UserError: one is not; ``owner`` is whose they are.
    """
    choose(f"{owner}.bound_space", rules.bound_space, SPACES)
    counts = [field for field, value in rules._asdict().items() if isinstance(value, int)]
    at_least(owner, rules, **dict.fromkeys(counts, 1))
    return rules


class InversionHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    generator_lr: Any = np.float32(1e-3)
    mask_lr: Any = np.float32(0.01)
    pretrain_bound: Any = np.float32(0.1)  # of the mean squared change of an image, in the pre-training
    image_bound: Any = np.float32(0.3)  # of that after it
    feature_bound: Any = np.float32(3)  # of the mean squared change of the benign features
    noise: Any = np.float32(0.03)  # on the images by which the target is told, in standard deviations of the data


class Rate(NamedTuple):
    """What a constant schedule reads."""

    lr: Array


class Told(NamedTuple):
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
    told: Told
    beside: tuple[Array, ...]  # what the unlearning told, each f32[rounds * epochs]


class Inverted(NamedTuple):
    """Triggered copies of clean images, made without knowledge of the trigger."""

    images: Array  # u8[n h w c]; rows that are absent (role 0) are as they were
    target: Array  # i32[]: the class that most of them are given
    told: Told
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


def inverted_triggers(model: Model, rules: Rules = ONE_ROUND) -> Callable[..., Inverted]:
    """Build the synthesis of triggered images for a network that is left as it is.

    Args:
      model: network.
      rules: with more than one round, the later ones also ask for the class detected in the first.

    Returns:
      ``invert(key, variables, clean: CleanSet, hyper) -> Inverted``. The generator learns from the training rows and draws all
      present ones, as they are; ``hyper`` has the leaves of :class:`InversionHyper` and may have more.

    Raises:
      UserError: a rule out of range, or images too small.

    Source: X. Xu, K. Huang, Y. Li, Z. Qin, K. Ren, "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling
      Benign Features", ICLR 2024: its reconstruction, without the unlearning.
    """
    search = searcher(model, checked(rules, "inverted_triggers"))
    draw = generator(model.spec, rules.generator_width, rules.generator_levels)

    def paint(shared: Any, images: Array, x: Array) -> Array:
        params, clean = shared
        rows = jnp.minimum(x, clean.labels.shape[0] - 1)
        drawn = to_uint8(draw.apply(params, to_float(clean.images[rows])))
        kept = (clean.role[rows] > 0)[:, None, None, None]
        return images.at[x].set(jnp.where(kept, drawn, clean.images[rows]), mode="drop")

    @jax.jit
    def plan(clean: CleanSet) -> tuple[Array, Array]:
        n = clean.labels.shape[0]
        size = min(rules.batch, n)
        return clean.images, jnp.arange(-(-n // size) * size, dtype=jnp.int32).reshape(-1, size)

    def invert(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Inverted:
        found = search(key, variables, clean, hyper)
        blank, rows = plan(clean)
        images = run_steps(paint, blank, rows, (found.generator, clean), model.loop)
        return Inverted(images, found.target, found.told, found.network.alive, found.network.stopped)

    return invert


def searcher(
    model: Model, rules: Rules, unlearn: tuple[Callable[..., Any], Callable[..., Any]] | None = None
) -> Callable[..., Found]:
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
    change = change_of(model.spec, rules.bound_space == "normalised")
    common: dict[str, Any] = {"batch": rules.batch, "schedule": constant(), "optimiser": ADAM}
    loss = pretraining(model, draw, change)
    begin, pretrain = interruptible(model, epochs=rules.pretrain_epochs, gradient=loss, measured=1, **common)
    loss = generating(model, draw, change)
    begin_again, generate = interruptible(model, epochs=rules.generator_epochs, gradient=loss, measured=3, **common)
    begin_mask, decouple = interruptible(model, epochs=rules.mask_epochs, gradient=decoupling(model), **common)
    vote = voting(model, draw)

    @jax.jit
    def start(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        initial, first, rest = jax.random.split(key, 3)
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        params = jax.tree.map(lambda p: p.astype(dtype), draw.init(initial))
        painter = begin({"params": params, "batch_stats": {}}, hyper)
        return painter, first, rest, training_rows(clean), (Rate(hyper.generator_lr), Rate(hyper.mask_lr))

    @jax.jit
    def open_rounds(variables: Variables, painter: Any, hyper: Any) -> Any:
        """The states of network and generator, whose optimiser is a new one, and no target."""
        network = unlearn[0](variables, hyper) if unlearn else (descent.begin(PLAIN, variables, hyper, 0), ())
        return _after(network, painter), _after(begin_again(painter[0].variables, hyper), painter), jnp.int32(0)

    @jax.jit
    def open_round(key: Key, number: Array, network: Any, hyper: Any) -> Any:
        drawing, *keys = jax.random.split(step_key(key, number), 5)
        variables = network[0].variables
        images = jax.ShapeDtypeStruct((1, *model.spec.image_shape), jnp.float32)
        shape = jax.eval_shape(lambda v, x: with_features(model, v, x)[1], dict(variables), images).shape[1:]
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        free = {"params": {"mask": jax.random.normal(drawing, shape, dtype)}, "batch_stats": variables["batch_stats"]}
        return _after(begin_mask(free, hyper), network), keys, variables

    @jax.jit
    def masked(masking: Any, painter: Any, variables: Variables, number: Array, target: Array, hyper: Any) -> Any:
        learned = masking[0].variables
        copy = {**variables, "batch_stats": learned["batch_stats"]}  # the generator sees the copy's statistics
        return _after(painter, masking), (copy, benign_share(learned["params"]["mask"]), target, number > 0, hyper)

    @jax.jit
    def ballot(key: Key, clean: CleanSet) -> Any:
        rows, mask = epoch_plan(stream(key, Stream.ORDER), training_rows(clean), rules.batch)
        return jnp.zeros(model.spec.classes, jnp.int32), (rows, mask, jnp.arange(len(rows), dtype=jnp.int32))

    @jax.jit
    def counted(votes: Array, number: Array, target: Array, network: Any, painter: Any) -> Any:
        detected = jnp.argmax(votes).astype(jnp.int32)
        share = jnp.max(votes).astype(jnp.float32) / jnp.maximum(jnp.sum(votes), 1).astype(jnp.float32)
        return _after(network, painter), jnp.where(number == 0, detected, target), (detected, share)

    follow = jax.jit(_after)

    @jax.jit
    def tell(first: Array, each: Any) -> tuple[Told, tuple[Array, ...]]:
        *phases, votes = each
        masks, painted, *unlearned = (columns(means.reshape(-1, means.shape[-1])) for means in phases)
        return Told(first[:, 0], *masks, *painted, *votes), unlearned[0] if unlearned else ()

    def search(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Found:
        hyper = jax.tree.map(jnp.asarray, hyper)
        painter, first, rest, present, (painting_rate, mask_rate) = start(key, variables, clean, hyper)
        painter, before = pretrain(first, painter, clean, present, painting_rate, (variables, hyper))

        def round_(carry: Any, number: Array) -> Any:
            network, painter, target = carry
            masking, keys, now = open_round(rest, number, network, hyper)
            masking, masks = decouple(keys[0], masking, clean, present, mask_rate, now)
            painter, extra = masked(masking, painter, now, number, target, hyper)
            painter, painted = generate(keys[1], painter, clean, present, painting_rate, extra)
            params, (zero, xs) = painter[0].variables["params"], ballot(keys[2], clean)
            votes = run_steps(vote, zero, xs, (keys[2], now, params, clean, hyper), model.loop)
            network, target, detected = counted(votes, number, target, network, painter)
            if unlearn is None:
                return (network, painter, target), (masks, painted, detected)
            network, unlearned = unlearn[1](keys[3], network, clean, present, hyper, params)
            return (network, follow(painter, network), target), (masks, painted, unlearned, detected)

        carry, each = run_epochs(round_, open_rounds(variables, painter, hyper), rules.rounds, model.loop)
        network, painter, target = carry
        return Found(network[0], painter[0].variables["params"], target, *tell(before, each))

    return search


def _after(carry: tuple[State, Any], other: tuple[State, Any]) -> tuple[State, Any]:
    """A carry that counts on from another one, and stands still where that does."""
    state, rate = carry
    return state._replace(step=other[0].step, alive=other[0].alive, stopped=other[0].stopped), rate
