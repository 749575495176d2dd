"""A sweep in words: what will run, its memory and its execution."""

import functools
from collections.abc import Sequence

import jax

from bdjax.data import spec
from bdjax.data.room import size_text
from bdjax.models.build import shapes
from bdjax.population import device_memory, named
from bdjax.sweep import goal
from bdjax.sweep.cell import TrainCell
from bdjax.sweep.execution import Chosen, origin
from bdjax.sweep.pending import Pending
from bdjax.types import Dataset, Model


def summary(works: Sequence[Pending], choices: Sequence[Chosen]) -> list[str]:
    """What will run, in lines: cells, members, compile buckets, memory, execution."""
    training = sum(len(points) for work in works for points in work.training)
    defended = sum(len(run.points) for work in works for run in work.defenses)
    cells = sum(1 + len(work.branch.defenses) for work in works)
    open_cells = sum(bool(work.training) + len(work.defenses) for work in works)
    begin = "measure" if all(work.branch.train.imported for work in works) else "train"
    lines = [
        f"{cells} cells, {cells - open_cells} finished; {open_cells} compile buckets to run: {training} members to {begin}, "
        f"{defended} to defend"
    ]
    for work in works:
        if work.training or work.defenses:
            model, attack = work.branch.model, work.branch.attack
            each, shared = member_bytes(model), data_bytes(work.dataset)
            length = "imported" if work.branch.train.imported else f"{attack.recipe.epochs} epochs"
            length += f", {goal.in_words(attack, work.branch.train.target, work.dataset.spec)}"
            lines += [
                f"{title(work.branch.train)}: width {model.width}, {len(work.dataset.train.labels)} training images, "
                f"{length}; per member {size_text(each)} of parameters and momentum, shared {size_text(shared)} of images, "
                f"{size_text(device_memory())} may be used"
            ]
    for work, choice in zip(works, choices, strict=True):
        if work.training or work.defenses:
            name, execution = work.branch.train.model, choice.execution
            fits = "" if execution.chunk or execution.strategy == "sequential" else ", as many members at once as fit"
            lines.append(f"execution of {name}: {origin(choice)}: {named(execution)}{fits} ({jax.default_backend()})")
    return list(dict.fromkeys(lines))


def title(cell: TrainCell) -> str:
    """A training cell in words."""
    return f"{spec(cell.dataset).name} / {cell.model} / {cell.attack}"


@functools.lru_cache(maxsize=64)
def member_bytes(model: Model) -> int:
    """Bytes of one member's variables and momentum while it trains, without activations."""
    variables = shapes(model)
    leaves = jax.tree.leaves((variables, variables["params"]))  # the momentum mirrors the parameters
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def data_bytes(dataset: Dataset) -> int:
    """Bytes of a data set on the device, with its triggered copies."""
    return 2 * sum(split.images.nbytes + split.labels.nbytes for split in (dataset.train, dataset.test))
