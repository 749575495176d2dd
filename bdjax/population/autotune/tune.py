"""Measure which execution trains a model fastest on this machine, within a budget of seconds, and cache it."""

import datetime
import math
from collections.abc import Callable, Sequence

import jax

from bdjax.errors import UserError
from bdjax.population.autotune import cache
from bdjax.population.autotune.cache import Tuned
from bdjax.population.autotune.candidates import Tuning
from bdjax.population.execution import Execution, check, default_execution
from bdjax.types import Model

# Members at once (per device); forms are compared at the first that fits. Unrolled forms compile in proportion to it.
CHUNKS = {"cpu": (4, 8, 16, 1), "": (16, 64, 4, 1)}

# The forms compared, best first: on a CPU those that compile fast, on a TPU by the estimates of its compiler
# (benchmarks/results/accelerators_v5e.md), on a GPU by what is reported of grouped convolutions (jax-ml/jax#13800).
_CPU = (
    ("sequential", "mixed", "scan"),
    ("vmap", "mixed", "scan"),
    ("vmap", "patches", "scan"),
    ("sequential", "mixed", "dispatch"),
    ("sequential", "patches", "scan"),
)


_TPU = (("vmap", "native", "scan"), ("sequential", "native", "scan"), ("vmap", "unrolled", "scan"))
_GPU = (
    ("vmap", "unrolled", "scan"),
    ("sequential", "native", "scan"),
    ("vmap", "native", "scan"),
    ("unrolled", "native", "scan"),
    ("vmap", "patches", "scan"),
)


def forms(model: Model | str = "", platform: str | None = None) -> tuple[Execution, ...]:
    """Return the executions worth comparing, without their chunks; the default comes first.

    Args:
      model: the network, or its name, which decides the default.
      platform: "cpu", "gpu", "tpu"; None = the one in use. Any other is compared as a GPU.
    """
    count, platform = jax.local_device_count(), platform or jax.default_backend()
    if platform == "cpu":
        found = [Execution(*form) for form in _CPU]
        found += [Execution("vmap", "mixed", "scan", devices=count)] * (count > 1)
    else:
        found = [Execution(*form, devices=count) for form in (_TPU if platform == "tpu" else _GPU)]
    return tuple(dict.fromkeys([default_execution(platform, model)._replace(chunk=0), *found]))


def cached(
    model: Model, batch: int, *, members: int | None = None, candidates: Sequence[Execution] | None = None
) -> Tuned | None:
    """Return what :func:`tune` found earlier on this machine, with these versions, for this work; None = nothing.

    Args:
      model: network.
      batch: rows of a training step.
      members: that will run; a tuning for so few that larger chunks were never tried does not count. None = any.
      candidates: the list that was measured; None = the platform's.
    """
    found = cache.read(cache.tuning_key(model, batch, candidates))
    if found is None or members is None:
        return found
    largest = max(_chunks()) * jax.local_device_count()
    if candidates is not None:
        largest = max(execution.chunk or members for execution in candidates)
    return found if found.members >= min(members, largest) else None


def tune(
    model: Model,
    *,
    batch: int,
    members: int,
    budget_seconds: float = 60.0,
    candidates: Sequence[Execution] | None = None,
    refresh: bool = False,
    say: Callable[[str], None] | None = None,
) -> Tuned:
    """Find the execution with the most training images per second, and keep it in the cache.

    What is measured is training: whole steps (gather, poison, crop and flip, forward, backward, SGD) of a patch attack on random
    images, for as many members as the chunk holds. Defenses run the same convolutions, mostly on smaller batches, and evaluation
    only forward, so for them the winner is a good guess and not a measurement. Forms (strategy, lowering, loop) meet at one
    chunk; the fastest try other chunks, and the best few are timed again in turn. Compilation counts in the budget, not in the
    rate. A candidate that fails, does not fit or would outlast the budget is a row with the reason. What is cached is
    measured again where the budget left candidates out and is larger now.

    Args:
      model: network, adapted or not.
      batch: rows of a training step, at least 1.
      members: that will be trained, at least 1; larger chunks are not tried.
      budget_seconds: after which nothing new starts; the first candidate is always measured.
      candidates: what to measure instead of the platform's list, exactly so (chunk 0 = all members at once).
      refresh: measure even if a result is cached.
      say: gets one line per candidate.

    Returns:
      The winner, its rate, the table of candidates and the key of the cache.

    Raises:
      UserError: a number out of range, a candidate that cannot run here, a cache that cannot be written, or nothing that ran.
    """
    if batch < 1 or members < 1 or not 0 < budget_seconds < math.inf:
        given = f"batch {batch}, {members} members and {budget_seconds} seconds"
        raise UserError(f"tuning needs at least 1 row per batch, 1 member and a positive number of seconds; given {given}")
    if candidates is not None and not candidates:
        raise UserError("candidates is empty; None stands for the list of the platform")
    listed = None if candidates is None else tuple(check(execution) for execution in candidates)
    found = None if refresh else cached(model, batch, members=members, candidates=listed)
    if found is not None and (found.complete or budget_seconds <= found.budget):
        return found
    cache.prepare()
    tuning = Tuning(model, batch, members, budget_seconds, say)
    if listed is not None:
        tuning.measure(listed)
    else:
        sizes = tuning.fitting(_chunks())
        tuning.measure(tuning.with_chunk(form, sizes[0]) for form in forms(model))
        tuning.measure(tuning.with_chunk(form, size) for form in tuning.fast_forms() for size in sizes[1:])
    winner = tuning.finish()
    found = Tuned(
        winner.execution,
        winner.row["rate"],
        tuple(tuning.rows),
        cache.tuning_key(model, batch, listed),
        members,
        float(budget_seconds),
        round(tuning.spent(), 3),
        datetime.date.today().isoformat(),
    )
    cache.write(found)
    return found


def _chunks() -> tuple[int, ...]:
    return CHUNKS.get(jax.default_backend(), CHUNKS[""])
