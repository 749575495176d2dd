"""Grad-Prune's first part: zero, one per round, the filter on which unlearning the trigger pulls hardest."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.defenses.channels import GRID
from bdjax.defenses.grad_prune.doubles import drop_is_below
from bdjax.defenses.grad_prune.filters import Filters, flat, masks_of, pruned
from bdjax.defenses.grad_prune.passes import measurer, scorer, training_plans, validation_plans
from bdjax.defenses.grad_prune.settings import Config
from bdjax.keys import Stream, step_key, stream
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Model, Num, Variables


class Ended(IntEnum):
    """Why the rounds, or the epochs of the tuning, ended: the numbers of the trace."""

    NOT_RUN = -1
    CAP = 0  # the configured rounds or epochs are over
    ACCURACY = 1  # too many clean validation rows became wrong
    PATIENCE = 2  # nothing better for too long
    NO_FILTER = 3  # there is none left with a gradient other than 0
    NON_FINITE = 4  # a score or a loss was not finite: that round or step does not count


def first_reason(reasons: dict[Ended, Bool[Array, ""]]) -> Int[Array, ""]:
    """The first reason that is true; ``Ended.NOT_RUN``, which lets a loop go on, where none is."""
    return jnp.select(list(reasons.values()), [jnp.int32(reason) for reason in reasons], jnp.int32(Ended.NOT_RUN))


class Best(NamedTuple):
    """The state that is kept."""

    keep: Array  # f[F]: 0 for the filters that are pruned
    statistics: Any
    unlearning: Array  # f[]: loss on triggered validation rows
    clean: Array  # f[]: on clean ones
    round: Array  # i32[]


class History(NamedTuple):
    """What happened, by round: entry 0 is the network as it came; -1 or NaN after the last round."""

    address: Array  # i32[rounds + 1]
    filter: Array  # i32[rounds + 1]
    score: Array  # f32[rounds + 1]
    errors: Array  # i32[rounds + 1]
    unlearning: Array  # f32[rounds + 1]


class Pruned(NamedTuple):
    """What the rounds leave."""

    best: Best
    history: History
    validation: Array  # i32[]: validation rows
    rounds: Array  # i32[]: rounds made
    ended: Array  # i32[]: :class:`Ended`


class _State(NamedTuple):
    keep: Array
    statistics: Any
    best: Best
    waited: Array  # i32[]: rounds since the best one
    round: Array  # i32[]: rounds made
    ended: Array  # i32[]
    history: History


class _Choice(NamedTuple):
    """The filter that a round prunes."""

    keep: Array  # f[F]: without it
    found: Array  # bool[]: its score is not 0
    finite: Array  # bool[]: all scores are
    row: dict[str, Array]  # what the history notes of it


class _Judged(NamedTuple):
    """A network on the validation rows."""

    errors: Array  # i32[]: clean rows that are wrong
    clean: Array  # f[]: cross-entropy on clean rows
    unlearning: Array  # f[]: on triggered ones
    finite: Array  # bool[]: both are


def within(
    errors: Int[Array, ""], before: Int[Array, ""], rows: Int[Array, ""], tolerance: Float[Array, ""], integer: bool
) -> Bool[Array, ""]:
    """Whether the drop of the accuracy is smaller than the tolerance.

    Args:
      errors: wrong rows now.
      before: at the start.
      rows: in all, at most 200,000 (the products are 32-bit).
      tolerance: in [0, 1], rounded to 1e-4.
      integer: compare whole numbers; else the difference of two accuracies in double precision, where a drop of exactly the
        tolerance is sometimes smaller than it (:mod:`~.doubles`).
    """
    accepted = jnp.round(tolerance.astype(jnp.float32) * GRID).astype(jnp.int32)
    if integer:
        return GRID * (errors - before) < accepted * rows
    return drop_is_below(rows - before, rows - errors, rows, accepted, GRID)


def pruner(model: Model, config: Config) -> Callable[..., Pruned]:
    """Build the rounds of one member.

    Returns:
      ``prune(key, variables, table: Filters, clean, triggered u8 or f32 [n h w c], hyper) -> Pruned``. A round that is not
      finite, or finds no filter, does not count.
    """
    drifts = config.score_bn == "first_batch_train"
    measure, slopes = measurer(model), scorer(model, first_in_train_mode=drifts)
    rounds, classes = config.rounds if config.prune or drifts else 0, model.spec.classes

    def prune(key: Key, variables: Variables, table: Filters, clean: CleanSet, triggered: Array, hyper: Any) -> Pruned:
        ordering, judging, network = jax.random.split(key, 3)
        kernels = tuple(f"{conv}/kernel" for conv in table.convs) if config.prune else ()
        train_at, validate_at = training_plans(config, clean, classes), validation_plans(config, clean, classes)
        validation = jnp.sum(clean.role == 2, dtype=jnp.int32)

        def network_of(keep: Float[Array, " F"], statistics: Any) -> Variables:
            return {**variables, "params": pruned(table, variables["params"], keep), "batch_stats": statistics}

        def judge(keep: Float[Array, " F"], statistics: Any, number: Int[Array, ""]) -> _Judged:
            batches = validate_at(judging, number)
            wrong, loss = measure(network_of(keep, statistics), (clean.images, triggered), clean.labels, batches)
            return _Judged(wrong[0], loss[0], loss[1], jnp.all(jnp.isfinite(loss)))

        def inside(judged: _Judged) -> Bool[Array, ""]:
            return within(judged.errors, first.errors, validation, hyper.tolerance, bool(config.integer_threshold))

        def again(state: _State) -> _State:
            number = state.round + 1
            draws, batches = step_key(stream(network, Stream.NETWORK), number), train_at(ordering, number)
            now = network_of(state.keep, state.statistics)
            slope, statistics = slopes(draws, now, kernels, triggered, clean.labels, batches)
            choice = _chosen(config, table, state.keep, [slope[path] for path in kernels])
            judged = judge(choice.keep, statistics, number)
            return _after_round(config, rounds, state, statistics, choice, judged, inside(judged))

        keep = jnp.ones(len(table.address), jax.tree.leaves(variables["params"])[0].dtype)
        first = judge(keep, variables["batch_stats"], jnp.int32(0))
        state = _before_rounds(config, keep, variables["batch_stats"], first, inside(first))
        if not rounds:
            ended = jnp.where(first.finite, jnp.int32(Ended.NOT_RUN), state.ended)
            return Pruned(state.best, state.history, validation, jnp.int32(0), ended)
        last = jax.lax.while_loop(lambda state: state.ended == Ended.NOT_RUN, again, state)
        return Pruned(last.best, last.history, validation, last.round, last.ended)

    return prune


def _chosen(config: Config, table: Filters, keep: Float[Array, " F"], slopes: list[Array]) -> _Choice:
    """The filter whose gradient is largest in the mean, from gradients of the kernels f[kh kw c d] in the table's order."""
    if not config.prune:
        return _Choice(keep, jnp.bool_(True), jnp.bool_(True), {})
    scores = jnp.concatenate([jnp.mean(jnp.abs(slope), (0, 1, 2)) for slope in slopes])
    left = flat(table, masks_of(table, keep)) > 0 if config.exclude_pruned else jnp.ones_like(scores, bool)
    winner = jnp.argmax(jnp.where(left, scores, -jnp.inf)).astype(jnp.int32)  # of equal ones the first
    score = jnp.where(left[winner], scores[winner], -jnp.inf)
    address, channel = (jnp.asarray(each)[winner] for each in (table.address, table.channel))
    row = {"address": address, "filter": channel, "score": score}
    return _Choice(keep.at[winner].set(0), score > 0, jnp.all(jnp.isfinite(scores)), row)


def _before_rounds(config: Config, keep: Float[Array, " F"], statistics: Any, judged: _Judged, inside: Bool[Array, ""]) -> _State:
    """The state before the first round, which there is none of where the network is not finite or nothing may be lost."""
    number = jnp.int32(0)
    best = Best(keep, statistics, judged.unlearning, judged.clean, number)
    history = _with_row(_empty(config.rounds), number, {"errors": judged.errors, "unlearning": judged.unlearning})
    reasons = {Ended.NON_FINITE: ~judged.finite, Ended.ACCURACY: ~inside}
    return _State(keep, statistics, best, jnp.int32(0), number, first_reason(reasons), history)


def _after_round(
    config: Config, rounds: int, state: _State, statistics: Any, choice: _Choice, judged: _Judged, inside: Bool[Array, ""]
) -> _State:
    """The state after a round; of one that does not count, only why it ended the rounds."""
    number, finite = state.round + 1, choice.finite & judged.finite
    better = inside & (judged.unlearning < state.best.unlearning)
    waited = jnp.where(better, 0, state.waited + 1)
    ended = first_reason(
        {
            Ended.NON_FINITE: ~finite,
            Ended.NO_FILTER: ~choice.found,
            Ended.ACCURACY: ~inside,
            Ended.PATIENCE: waited >= config.pruning_patience,
            Ended.CAP: number >= rounds,
        }
    )
    current = Best(choice.keep, statistics, judged.unlearning, judged.clean, number)
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), current, state.best)
    row = {**choice.row, "errors": judged.errors, "unlearning": judged.unlearning}
    new = _State(choice.keep, statistics, best, waited, number, ended, _with_row(state.history, number, row))
    return jax.tree.map(lambda a, b: jnp.where(choice.found & finite, a, b), new, state._replace(ended=ended))


def _empty(rounds: int) -> History:
    """The history of no round."""
    none, nothing = jnp.full(rounds + 1, -1, jnp.int32), jnp.full(rounds + 1, jnp.nan, jnp.float32)
    return History(none, none, nothing, none, nothing)


def _with_row(history: History, at: Int[Array, ""], row: dict[str, Num[Array, ""]]) -> History:
    """The history with these values at entry ``at``."""
    old = {name: getattr(history, name) for name in row}
    return history._replace(**{name: old[name].at[at].set(value.astype(old[name].dtype)) for name, value in row.items()})
