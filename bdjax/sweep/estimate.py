"""What a grid costs, before anything runs: cells, members, memory, images and device-hours."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import population
from bdjax.population import Execution, Tuned, foreseen, platforms, targets
from bdjax.sweep import build, expand, feasible, goal
from bdjax.sweep.cell import DefenseCell
from bdjax.sweep.execution import Chosen, chosen, origin, over, training_batch
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.sweep.images import tuning_images
from bdjax.sweep.run import sizes_of
from bdjax.sweep.summary import member_bytes
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, attack_member
from bdjax.types import Array, Attack, DataSpec, Defense, Model, Split


class Measuring(NamedTuple):
    """What a plan may spend time on."""

    tune: bool = True  # measure rates that are not in the cache
    budget: float = 60.0  # seconds per model and batch
    refresh: bool = False  # measure also what is in the cache
    memory: bool = True  # compile the training of one and two members to learn what a member needs


class Rated(NamedTuple):
    """How fast a network trains."""

    choice: Chosen
    origin: str  # of the execution
    rate: float | None  # images per second, over all devices of the execution; None = not known
    measured: str  # when, or by what it is estimated, or why not
    memory: tuple[int, int] | None = None  # bytes of a member, and the members that fit a device; None = not asked yet
    compile_seconds: float | None = None


class DefensePlan(NamedTuple):
    """A defense cell of a plan."""

    defense: str
    spc: int | None
    members: int
    images: int | None  # rows seen by its tuning epochs; None = not in its configuration
    hours: float | None  # device-hours of these images at the rate of training


class Training(NamedTuple):
    """A training cell of a plan."""

    dataset: str
    model: str
    width: int
    attack: str
    batch: int
    epochs: int
    members: int
    images: int  # over all members and epochs
    parameter_bytes: int  # of one member: variables and momentum
    member_bytes: int | None  # of one member in the compiled training, activations included; None = not known
    members_per_device: int | None  # that fit
    execution: Execution
    origin: str  # of the execution
    rate: float | None  # training images per second, over all devices of the execution; None = not measured
    measured: str  # when, or by what it is estimated, or why not
    hours: float | None  # device-hours of training
    defenses: tuple[DefensePlan, ...]
    goal: str  # what triggered images are to be called
    infeasible: tuple[str, ...]  # why members at some ratios would be recorded and not trained; they are not counted
    compile_seconds: float | None = None  # of the training program for a target, on this machine


class Overview(NamedTuple):
    """A plan."""

    training_cells: int
    defense_cells: int
    compile_buckets: int  # cells, each of which compiles a program of its own
    members: int  # trained
    experiments: int  # a member under a defense each
    images: int  # of training
    training_hours: float | None  # device-hours; None = a rate is missing
    defense_hours: float | None  # of the defense cells that can be estimated; None = a rate is missing
    not_estimated: int  # defense cells without an estimate
    cells: tuple[Training, ...]
    about: str = ""  # what the grid has to say about the number of experiments
    target: str = ""  # the devices that it is planned for; "" = those of this machine
    price: float | None = None  # of a device-hour, as the user gave it


def overview(
    grid: Grid,
    *,
    execution: Mapping[str, Any] | None = None,
    tuned: bool = True,
    measuring: Measuring | None = None,
    only: Mapping[str, str] | None = None,
    limit: int | None = None,
    data_dir: str | None = None,
    say: Callable[[str], None] | None = None,
    target: str | None = None,
    price: float | None = None,
) -> Overview:
    """Count what a grid asks for and estimate what it takes; no data are read and nothing that is already recorded is subtracted.

    Device-hours are images over the images per second that were measured for this model and batch (:func:`population.tune`),
    without compilation and evaluation. A defense is estimated where its configuration names its epochs, by the clean rows these
    see, at the rate of *training*; its other passes over data are not counted.

    Args:
      grid: what would run.
      execution: single fields that the user sets.
      tuned: start from what the cache holds, as :func:`bdjax.sweep.run.run` does.
      measuring: what may be measured now; None = as :class:`Measuring` says.
      only: {axis: value}, see :func:`bdjax.sweep.expand.select`.
      limit: number of cells at most.
      data_dir: folder of the data archives, which show which edition of a data set is at hand.
      say: hears one line per measurement.
      target: devices that are not here, such as "tpu:v5e-8": nothing is measured, their compiler says what a training needs (see
        :mod:`bdjax.population.foreseen`); None = this machine's.
      price: of a device-hour, in any currency.

    Raises:
      UserError: a mistake in the grid, the execution or the target; a compiler that is not installed.
    """
    measuring, devices = measuring or Measuring(), None if target is None else targets.parse(target)
    if devices is not None:
        platforms.on_the_cpu()
    branches = expand.select(expand.cells(grid), only or {}, limit)
    asked = len(grid.seeds) * len(grid.poison_ratio)
    rated: dict[Any, Rated] = {}
    needs: dict[Any, tuple[int, int] | None] = {}
    cells = []
    for branch in branches:
        cell, model, attack = branch.train, branch.model, branch.attack
        rows = sizes_of(grid, cell.dataset, data_dir)
        batch = training_batch(attack, rows[0])
        if (work := (cell.dataset, cell.model, batch)) not in rated:
            if devices is not None:
                rated[work] = _foreseen(model, devices, batch, rows, say)
            else:
                rated[work] = _rated(branch, rows[0], asked, execution, tuned, measuring, say)
        here = rated[work]
        kind = (*work, here.choice.execution.lowering, cell.attack if attack.batch else attack.recipe.augment)
        if here.memory is not None:
            needs[kind] = here.memory
        elif measuring.memory and kind not in needs and cell.imported is None:
            needs[kind] = _bytes(model, attack, rows, here.choice.execution)
        idle = [] if cell.imported else [feasible.idle(attack, cell.attack, ratio, rows[0]) for ratio in grid.poison_ratio]
        infeasible = tuple(reason for reason in idle if reason)
        members = asked - len(grid.seeds) * len(infeasible)
        epochs = attack.recipe.epochs if cell.imported is None else 0
        images = epochs * (rows[0] // batch * batch) * members
        hours = None if here.rate is None else here.choice.execution.devices / here.rate / 3600
        defenses = tuple(
            _defense_plan(one, defense, model, grid, members, hours)
            for one, defense in zip(branch.defenses, branch.built, strict=True)
        )
        each, fitting = needs.get(kind) or (None, None)
        cells.append(
            Training(
                model.spec.name, cell.model, model.width, cell.attack, batch, epochs, members, images,
                member_bytes(model), each, fitting, here.choice.execution, here.origin, here.rate, here.measured,
                None if hours is None else hours * images, defenses, goal.in_words(attack, cell.target, model.spec), infeasible,
                here.compile_seconds,
            )
        )  # fmt: skip
    return _total(cells)._replace(about=grid.about, target=target or "", price=price)


def _total(cells: Sequence[Training]) -> Overview:
    defenses = [run for cell in cells for run in cell.defenses]
    missing = any(cell.rate is None for cell in cells)
    estimated = [run for run in defenses if run.images is not None]
    return Overview(
        training_cells=len(cells),
        defense_cells=len(defenses),
        compile_buckets=len(cells) + len(defenses),
        members=sum(cell.members for cell in cells),
        experiments=sum(run.members for run in defenses),
        images=sum(cell.images for cell in cells),
        training_hours=None if missing else math.fsum(cell.hours or 0.0 for cell in cells),
        defense_hours=None if missing else math.fsum(run.hours or 0.0 for run in estimated),
        not_estimated=len(defenses) - len(estimated),
        cells=tuple(cells),
    )


def _rated(
    branch: Branch,
    rows: int,
    members: int,
    execution: Mapping[str, Any] | None,
    tuned: bool,
    measuring: Measuring,
    say: Callable[[str], None] | None,
) -> Rated:
    """The execution a cell will run with, and the measurement of its rate."""
    cell, model, attack = branch.train, branch.model, branch.attack
    batch = training_batch(attack, rows)
    options: dict[str, Any] = dict(batch=batch, members=members, budget_seconds=measuring.budget, refresh=measuring.refresh)

    def measure(candidates: list[Execution] | None) -> Tuned | None:
        if not measuring.tune:
            return population.cached(model, batch, members=members, candidates=candidates)
        named_say = None if say is None else lambda line: say(f"{model.spec.name} / {cell.model}, batch {batch}: {line}")
        return population.tune(model, candidates=candidates, say=named_say, **options)

    if tuned and not execution:
        found = measure(None)
        return _of_tuning(over(found, model, None), found)
    choice = chosen(model, attack, rows, members, execution, tuned=tuned)
    if choice.tuned is not None and choice.execution == choice.tuned.execution and not measuring.refresh:
        return _of_tuning(choice, choice.tuned)
    return _of_tuning(choice, measure([choice.execution]))  # what the user set is what has to be measured


def _of_tuning(choice: Chosen, found: Tuned | None) -> Rated:
    measured = "not measured" if found is None else f"measured on {found.date}"
    return Rated(choice, origin(choice), None if found is None else found.rate, measured)


def _foreseen(
    model: Model, target: targets.Target, batch: int, rows: tuple[int, int], say: Callable[[str], None] | None
) -> Rated:
    """The same for devices that are not here, by their compiler, with the execution that is the default there."""
    found = foreseen.foresee(model, target, batch=batch, say=say)
    execution = found.execution._replace(devices=target.devices)
    images = 2 * sum(rows) * math.prod(model.spec.image_shape)  # with their triggered copies
    memory = found.member_bytes, foreseen.fitting(found, target, images)
    measured = f"{'at most: ' if found.bound else ''}{found.about}"
    rate = found.rate * target.devices
    return Rated(Chosen(execution), f"default of {target.kind}", rate, measured, memory, found.compile_seconds)


def _bytes(model: Model, attack: Attack, rows: tuple[int, int], execution: Execution) -> tuple[int, int] | None:
    """Bytes per member of the compiled training, and the members that fit a device; None where assets are prepared first."""
    if attack.prepare is not None:
        return None
    data = _abstract(model.spec, attack, rows)
    stacked, _ = population.members([0], [0.1], rows[0])
    need = population.footprint(lambda m: attack_member(m, attack, rows[0]), model, stacked, (data,), execution)
    return need.per_member, max((population.device_memory() - need.fixed) // need.per_member, 0)


def _abstract(spec: DataSpec, attack: Attack, rows: tuple[int, int]) -> Data:
    """Shapes of what all members share (see :func:`bdjax.train.experiment.stage`)."""
    images = [jax.ShapeDtypeStruct((n, *spec.image_shape), jnp.uint8) for n in rows]
    labels = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in rows]
    shared: list[Any] = images if attack.recipe.shared_trigger else [None, None]
    copies: Array | None = None if attack.batch else shared[0]
    return Data(Split(images[0], labels[0]), copies, EvalSet(images[1], labels[1], shared[1], labels[1]), None)  # type: ignore[arg-type]


def _defense_plan(
    cell: DefenseCell, defense: Defense, model: Model, grid: Grid, members: int, hours: float | None
) -> DefensePlan:
    defended = members * len(build.hyper_points(defense, grid.hyper.get(cell.defense, {}), cell.defense))
    each = tuning_images(cell, defense, model.spec.classes)
    images = None if each is None else each * defended
    return DefensePlan(cell.defense, cell.spc, defended, images, None if hours is None or images is None else hours * images)
