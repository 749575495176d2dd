"""The first run on a device measures which execution is fastest, where the plan is long enough to be worth it."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import population
from bdjax.population import hosts
from bdjax.population.multiplications import PASSES, forward_macs
from bdjax.sweep.execution import Chosen, over, training_batch
from bdjax.sweep.images import tuning_images
from bdjax.sweep.pending import Pending
from bdjax.types import Model

LONG = 600.0  # seconds: a plan that is shorter is not worth measuring for
MOST, SHARE = 60.0, 0.05  # seconds of measuring at most, and their share of the plan
LEAST = 5.0  # seconds: a network whose share of the measuring is smaller runs by default
SIDE, UTILISATION = 2048, 0.3  # of the matrix product that shows how fast the device is, and the share of that a training reaches

Say = Callable[[str], None]


class _Kind(NamedTuple):
    """A network and a batch, and what is pending of it."""

    model: Model
    batch: int
    members: int
    images: int


def tuned(found: Sequence[Pending], choices: Sequence[Chosen], say: Say) -> list[Chosen]:
    """Return the executions of the branches, measured now where nothing is remembered and the plan is long.

    How long the plan takes is estimated from the multiplications of its images and the speed of a large matrix product. The
    measuring takes at most :data:`MOST` seconds and :data:`SHARE` of the plan, the first candidate of a network aside, and is
    remembered.

    Args:
      found: what is pending of each branch.
      choices: their executions so far, none of which the user set.
      say: hears what is measured.
    """
    kinds = _unknown(found, choices)
    if not kinds or hosts.is_multiprocess():
        return list(choices)
    rate = _multiplications_per_second()
    each = {name: forward_macs(kind.model, kind.model.spec.image_shape[0]) for name, kind in kinds.items()}
    seconds = {name: PASSES * kind.images * each[name] / rate for name, kind in kinds.items()}
    plan = sum(seconds.values())
    if plan <= LONG:
        return list(choices)
    budget, measured = min(MOST, SHARE * plan), {}
    for name, kind in kinds.items():
        mine = budget * seconds[name] / plan
        if mine >= LEAST:
            title = f"{kind.model.spec.name} / {kind.model.name}"
            say(f"{title}: not tuned on this device yet; measuring what is fastest for {mine:.0f} s (--no-tune leaves it out)")
            told = functools.partial(_told, say, title)
            measured[name] = population.tune(kind.model, batch=kind.batch, members=kind.members, budget_seconds=mine, say=told)
    return [
        over(measured[_name(one)], one.branch.model, None) if _name(one) in measured else choice
        for one, choice in zip(found, choices, strict=True)
    ]


def _told(say: Say, title: str, line: str) -> None:
    say(f"{title}: {line}")


def _name(pending: Pending) -> Any:
    """What a tuning belongs to."""
    branch = pending.branch
    return branch.train.dataset, branch.train.model, training_batch(branch.attack, len(pending.dataset.train.labels))


def _unknown(found: Sequence[Pending], choices: Sequence[Chosen]) -> dict[Any, _Kind]:
    """What is pending of the networks of which nothing is remembered."""
    kinds: dict[Any, _Kind] = {}
    for one, choice in zip(found, choices, strict=True):
        if choice.tuned is None and one.kinds():
            name, model = _name(one), one.branch.model
            members = max([len(points) for points in one.training] + [len(run.points) for run in one.defenses])
            before = kinds.get(name, _Kind(model, name[2], 0, 0))
            kinds[name] = _Kind(model, name[2], max(before.members, members), before.images + _images(one))
    return kinds


def _images(one: Pending) -> int:
    """Images that the pending trainings and the defenses whose configuration names its epochs see."""
    branch, rows = one.branch, len(one.dataset.train.labels)
    seen = branch.attack.recipe.epochs * rows * sum(len(points) for points in one.training)
    for run in one.defenses:
        defense = branch.built[branch.defenses.index(run.cell)]
        seen += (tuning_images(run.cell, defense, branch.model.spec.classes) or 0) * len(run.points)
    return seen


def _multiplications_per_second() -> float:
    """Multiply-accumulates per second that a training on this device may reach: a guess, from one large matrix product."""
    product, side = jax.jit(lambda a: a @ a), SIDE
    matrix = jnp.ones((side, side), jnp.float32)
    jax.block_until_ready(product(matrix))
    start = time.perf_counter()
    jax.block_until_ready(product(matrix))
    return UTILISATION * side**3 / max(time.perf_counter() - start, 1e-6)
