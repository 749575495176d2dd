"""Validate a configuration before anything is trained: names, shapes, data, memory, the folder of results."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data.source import digest
from bdjax.errors import UserError, command
from bdjax.keys import Stream, root, stream
from bdjax.models.build import shapes
from bdjax.population import device_memory
from bdjax.store import atomic
from bdjax.store.location import Location
from bdjax.sweep import expand, feasible, goal, outdated
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.sweep.pending import Tries, pending, work_of
from bdjax.sweep.ready import Ready
from bdjax.sweep.run import choices_of, load, refuse_infeasible
from bdjax.sweep.summary import data_bytes, member_bytes, summary, title
from bdjax.train.evaluate import apply_trigger
from bdjax.types import Dataset

INFEASIBLE = "infeasible: "


def validate(
    grid: Grid,
    out: "str | Location",
    *,
    data_dir: str | None,
    execution: Mapping[str, Any],
    tuned: bool = True,
    only: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[str]:
    """Check a grid and return what was found, in lines. Nothing is trained; the folder of results is probed, and not made.

    A line that begins with :data:`INFEASIBLE` is about members that a run would record as infeasible and not train.

    Args:
      grid, out, data_dir, execution, tuned, only, limit: those of :func:`bdjax.sweep.run.run`.

    Raises:
      UserError: the first thing that would stop or spoil a run.
    """
    branches = expand.select(expand.cells(grid), only or {}, limit)
    choices = choices_of(branches, grid, execution, tuned=tuned, data_dir=data_dir)
    folder = atomic.probed(out)
    lines = [f"names and settings: {len(branches)} training cells, {sum(len(b.defenses) for b in branches)} defense cells"]
    works, asked, ready = [], [], Ready()
    for branch in branches:
        dataset = load(grid, branch.train.dataset, data_dir)
        refuse_infeasible(branch, dataset)
        ready.look(branch, dataset)
        prepare = command("data", "prepare", branch.train.dataset, *([] if data_dir is None else ["--data-dir", data_dir]))
        found = [_data(dataset, prepare), _goal(branch, dataset), _shapes(branch, dataset), _memory(branch, dataset)]
        lines += [f"{title(branch.train)}: {line}" for line in found]
        lines += [f"{INFEASIBLE}{title(branch.train)}: {reason}" for reason in _infeasible(branch, grid, dataset)]
        asked.append(work_of(branch, dataset, grid))
        works.append(pending(asked[-1], folder, Tries()))
    return [*lines, f"{folder} is writable", *summary(works, choices), *outdated.lines(asked, folder)]


def _goal(branch: Branch, dataset: Dataset) -> str:
    """What triggered images are to be called."""
    return goal.in_words(branch.attack, branch.train.target, dataset.spec)


def _infeasible(branch: Branch, grid: Grid, dataset: Dataset) -> list[str]:
    if branch.train.imported is not None:  # whatever poisoned these networks did it elsewhere
        return []
    return feasible.infeasible(branch.attack, branch.train.attack, grid.poison_ratio, dataset.train.labels)


def _data(dataset: Dataset, prepare: str) -> str:
    spec = dataset.spec
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        images, labels = np.asarray(split.images), np.asarray(split.labels)
        if images.dtype != np.uint8 or images.shape != (len(labels), *spec.image_shape):
            given = f"{images.dtype}{list(images.shape)}"
            raise UserError(f"{name} images are {given}; uint8 images of shape {list(spec.image_shape)} are needed")
        if labels.min() < 0 or labels.max() >= spec.classes:
            raise UserError(f"{name} labels lie in {labels.min()} … {labels.max()}; allowed: 0 … {spec.classes - 1}")
    found = digest(dataset.train, dataset.test)
    if found != dataset.digest:
        raise UserError(f"the data of {spec.name} do not match their hash {dataset.digest[:12]}; run: {prepare}")
    return f"{len(dataset.train.labels):,} training and {len(dataset.test.labels):,} test images match their hash {found[:12]}"


def _shapes(branch: Branch, dataset: Dataset) -> str:
    model, attack = branch.model, branch.attack
    spec = dataset.spec
    variables = shapes(model)
    rows = jax.ShapeDtypeStruct((2, *spec.image_shape), jnp.float32)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x).logits, variables, rows)
    if logits.shape != (2, spec.classes):
        raise UserError(f"{model.name} gives logits {list(logits.shape)} for 2 images of {spec.classes} classes")
    if attack.prepare is None and attack.triggered is None:
        bytes_ = jax.ShapeDtypeStruct((2, *spec.image_shape), jnp.uint8)
        key = stream(root(branch.train.root), Stream.TRIGGER)
        triggered = jax.eval_shape(lambda x: apply_trigger(attack, attack.init(key, None), key, x), bytes_)
        if triggered.shape != bytes_.shape or triggered.dtype != bytes_.dtype:
            raise UserError(
                f"{branch.train.attack} turns images {list(bytes_.shape)} into {triggered.dtype}{list(triggered.shape)}"
            )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    shape = "x".join(map(str, spec.image_shape))
    return f"{model.name} width {model.width} maps {shape} to {spec.classes} classes, {count:,} parameters"


def _memory(branch: Branch, dataset: Dataset) -> str:
    each, shared, limit = member_bytes(branch.model), data_bytes(dataset), device_memory()
    if each + shared > limit:
        raise UserError(
            f"one member and the images need {(each + shared) / 2**30:.1f} GiB, {limit / 2**30:.1f} GiB may be used; "
            "reduce --width or --train-images"
        )
    return f"at most {(limit - shared) // each:,} members fit by their parameters and momentum; activations come on top"
