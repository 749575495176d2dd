"""Grad-Prune's first part: zero, one per round, the filter on which unlearning the trigger pulls hardest."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.defenses.channels import GRID
from bdjax.defenses.grad_prune.filters import Filters, filters, flat, masks_of, pruned
from bdjax.defenses.grad_prune.passes import measurer, scorer, training_plans, validation_plans
from bdjax.defenses.grad_prune.settings import Config
from bdjax.keys import Stream, step_key, stream
from bdjax.types import Array, CleanSet, Key, Model, Variables


class Ended(IntEnum):
    """Why a part ended, as its trace tells it."""

    NOT_RUN = -1
    CAP = 0  # the configured rounds or epochs are over
    ACCURACY = 1  # too many clean validation rows became wrong
    PATIENCE = 2  # nothing better for too long
    NO_FILTER = 3  # there is none left with a gradient other than 0
    NON_FINITE = 4  # a score or a loss was not finite: that round or step does not count


class Best(NamedTuple):
    """The state that is kept."""

    keep: Array  # f[F]
    statistics: Any
    unlearning: Array  # f[]: loss on triggered validation rows
    clean: Array  # f[]: on clean ones
    round: Array  # i32[]


class Told(NamedTuple):
    """What happened, by round: entry 0 is the network as it came; -1 or NaN after the last round."""

    address: Array  # i32[rounds + 1]
    filter: Array  # i32[rounds + 1]
    score: Array  # f32[rounds + 1]
    errors: Array  # i32[rounds + 1]
    unlearning: Array  # f32[rounds + 1]


class _State(NamedTuple):
    keep: Array
    statistics: Any
    best: Best
    waited: Array  # i32[]: rounds since the best one
    round: Array  # i32[]: rounds made
    ended: Array  # i32[]
    told: Told


def within(errors: Array, before: Array, rows: Array, tolerance: Array, integer: bool) -> Array:
    """bool[]: the drop of the accuracy is smaller than the tolerance.

    Args:
      errors: i32[], wrong rows now.
      before: i32[], at the start.
      rows: i32[] in all, at most 200,000 (the products are 32-bit).
      tolerance: f[] in [0, 1], rounded to 1e-4.
      integer: compare whole numbers; else the difference of two accuracies in double precision, where a drop of exactly the
        tolerance is sometimes smaller than it.
    """
    accepted = jnp.round(tolerance.astype(jnp.float32) * GRID).astype(jnp.int32)
    if integer:
        return GRID * (errors - before) < accepted * rows
    with jax.enable_x64(True):
        count, limit = rows.astype(jnp.float64), accepted.astype(jnp.float64) / jnp.full((), GRID, jnp.float64)
        return (rows - before).astype(jnp.float64) / count - (rows - errors).astype(jnp.float64) / count < limit


def pruner(model: Model, config: Config) -> Callable[..., tuple[Best, Filters, Told, tuple[Array, Array, Array]]]:
    """Build the rounds of one member.

    Returns:
      ``prune(key, variables, clean, triggered, hyper) -> (what is kept, the filters, what happened by round, (validation rows,
      rounds made, why they ended: :class:`Ended`))``. A round that is not finite, or finds no filter, does not count.
    """
    drifts = config.score_bn == "first_batch_train"
    measure, slopes = measurer(model), scorer(model, first_in_train_mode=drifts)
    rounds = config.rounds if config.prune or drifts else 0
    integer, squeeze = bool(config.integer_threshold), bool(config.prune_squeeze)

    def prune(key: Key, variables: Variables, clean: CleanSet, triggered: Array, hyper: Any) -> Any:
        ordering, judging, network = jax.random.split(key, 3)
        params, sets = variables["params"], (clean.images, triggered)
        table = filters(model.arch, params, str(config.companion), squeeze)
        kernels = tuple(f"{conv}/kernel" for conv in table.convs) if config.prune else ()
        train_at = training_plans(config, clean, model.spec.classes)
        validate_at = validation_plans(config, clean, model.spec.classes)
        held = jnp.sum(clean.role == 2, dtype=jnp.int32)

        def network_of(keep: Array, statistics: Any) -> Variables:
            return {**variables, "params": pruned(table, params, keep), "batch_stats": statistics}

        def judged(keep: Array, statistics: Any, number: Array) -> tuple[Array, Array]:
            return measure(network_of(keep, statistics), sets, clean.labels, validate_at(judging, number))

        def chosen(state: _State, slope: dict[str, Array]) -> tuple[Array, Array, Array]:
            """(number of the filter, its score, whether all scores are finite)."""
            scores = jnp.concatenate([jnp.mean(jnp.abs(slope[path]), (0, 1, 2)) for path in kernels])
            left = flat(table, masks_of(table, state.keep)) > 0 if config.exclude_pruned else jnp.ones_like(scores, bool)
            winner = jnp.argmax(jnp.where(left, scores, -jnp.inf)).astype(jnp.int32)  # of equal ones the first
            return winner, jnp.where(left[winner], scores[winner], -jnp.inf), jnp.all(jnp.isfinite(scores))

        def again(state: _State) -> _State:
            number = state.round + 1
            draws = step_key(stream(network, Stream.NETWORK), number)
            batches = train_at(ordering, number)
            now = network_of(state.keep, state.statistics)
            slope, statistics = slopes(draws, now, kernels, triggered, clean.labels, batches)
            keep, found, sound, row = state.keep, jnp.bool_(True), jnp.bool_(True), {}
            if config.prune:
                winner, score, sound = chosen(state, slope)
                keep, found = keep.at[winner].set(0), score > 0
                address, channel = (jnp.asarray(each)[winner] for each in (table.address, table.channel))
                row = {"address": address, "filter": channel, "score": score}
            wrong, loss = judged(keep, statistics, number)
            sound = sound & jnp.all(jnp.isfinite(loss))
            inside = within(wrong[0], first[0][0], held, hyper.tolerance, integer)
            better = inside & (loss[1] < state.best.unlearning)
            waited = jnp.where(better, 0, state.waited + 1)
            ended = jnp.select(
                [~sound, ~found, ~inside, waited >= config.pruning_patience, number >= rounds],
                [jnp.int32(reason) for reason in (Ended.NON_FINITE, Ended.NO_FILTER, Ended.ACCURACY, Ended.PATIENCE, Ended.CAP)],
                jnp.int32(Ended.NOT_RUN),
            )
            current = Best(keep, statistics, loss[1], loss[0], number)
            new = _State(
                keep,
                statistics,
                jax.tree.map(lambda a, b: jnp.where(better, a, b), current, state.best),
                waited,
                number,
                ended,
                _noted(state.told, number, {**row, "errors": wrong[0], "unlearning": loss[1]}),
            )
            return jax.tree.map(lambda a, b: jnp.where(found & sound, a, b), new, state._replace(ended=ended))

        keep = jnp.ones(len(table.address), jax.tree.leaves(params)[0].dtype)
        first = judged(keep, variables["batch_stats"], jnp.int32(0))
        start = Best(keep, variables["batch_stats"], first[1][1], first[1][0], jnp.int32(0))
        told = _noted(_blank(config.rounds), jnp.int32(0), {"errors": first[0][0], "unlearning": first[1][1]})
        sound, inside = jnp.all(jnp.isfinite(first[1])), within(first[0][0], first[0][0], held, hyper.tolerance, integer)
        ended = jnp.select([~sound, ~inside], [jnp.int32(Ended.NON_FINITE), jnp.int32(Ended.ACCURACY)], jnp.int32(Ended.NOT_RUN))
        if not rounds:
            return start, table, told, (held, jnp.int32(0), jnp.where(sound, jnp.int32(Ended.NOT_RUN), ended))
        state = _State(keep, variables["batch_stats"], start, jnp.int32(0), jnp.int32(0), ended, told)
        last = jax.lax.while_loop(lambda state: state.ended == Ended.NOT_RUN, again, state)
        return last.best, table, last.told, (held, last.round, last.ended)

    return prune


def _blank(rounds: int) -> Told:
    none, nothing = jnp.full(rounds + 1, -1, jnp.int32), jnp.full(rounds + 1, jnp.nan, jnp.float32)
    return Told(none, none, nothing, none, nothing)


def _noted(told: Told, at: Array, row: dict[str, Array]) -> Told:
    old = {name: getattr(told, name) for name in row}
    return told._replace(**{name: old[name].at[at].set(value.astype(old[name].dtype)) for name, value in row.items()})
