"""The images of an attack as files: its poisoned training set, its triggered test set, and what is known of them."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import data
from bdjax.errors import UserError, choose
from bdjax.interop.poisoned_folder import FORMS, Content, check_place, write
from bdjax.keys import root
from bdjax.results import poisoned
from bdjax.results.learned import Learning, Named, ready
from bdjax.results.triggers import Trigger
from bdjax.store import provenance
from bdjax.store.files import replacing
from bdjax.store.hashing import array_digest, plain
from bdjax.sweep import build, goal, trace
from bdjax.sweep.expand import Branch, cells
from bdjax.sweep.grid import Grid
from bdjax.train.experiment import stage
from bdjax.types import Dataset, DataSpec, Split

ONE = {"dataset": "data set", "model": "network", "attack": "attack", "poison_ratio": "poison ratio", "seeds": "seed"}
PER_CLASS = 5  # classes named in a note at most


class Exported(NamedTuple):
    """What :func:`export_data` wrote."""

    path: Path
    train: int  # training images; 0 where the triggered test images alone were asked for
    poisoned: int  # of them
    triggered: int  # test images


def export_data(
    grid: Grid,
    out: "str | Path",
    *,
    form: str = "images",
    test_only: bool = False,
    learning: Learning | None = None,
    overwrite: bool = False,
    data_dir: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Write the poisoned training set and the triggered test set of one member into a folder.

    The poisoned rows are bit for bit those of the member's training, before its crops and flips. The triggered test images are
    those that count for ASR. A ``manifest.json`` holds the configuration, versions and a digest of every array. The folder holds
    the clean test images too, so that it is a data set itself, for ``--dataset FOLDER``: trained on with the poison ratio 0, the
    arrays give the very network that the attack gives on its own data set. Images are read class by class instead, and are
    normalised by their own mean and deviation.

    Args:
      grid: one data set, attack, poison ratio and seed; its defenses play no part.
      out: folder to write, complete or not at all.
      form: "images": ``<class>/<row>.png`` in ``train``, ``test`` and ``test_triggered``, and ``index.csv``; or "arrays": a file
        each (``.npy``). Training images are filed by the label that is trained on, test images by their true one.
      test_only: write the triggered test images alone, which attacks without a fixed poisoned training set have too.
      learning: the folder of results that a trigger comes from which is learned with a network, and which network.
      overwrite: replace an earlier export.
      data_dir: folder of the data archives.
      say: is called with a line about what is prepared or to be known; None = stderr.

    Raises:
      UserError: ``out`` exists; several values of an axis, settings without an effect on images; an attack without a fixed
        poisoned training set, or a ratio that it cannot poison; a learned trigger without results.
    """
    place = Path(out)
    choose("form", form, FORMS)
    check_place(place, overwrite)
    say = say or (lambda line: print(f"bdjax: {line}", file=sys.stderr, flush=True))
    branch = branch_of(grid)
    _check(branch, grid, learning, test_only)
    loaded = data.load(grid.dataset[0], data_dir, train_images=grid.train_images, test_images=grid.test_images)
    content, known = _made(branch, grid, loaded, learning, test_only, say)
    with replacing(place) as temporary:
        write(temporary, content, form, {**_described(branch, grid, loaded, content), **known})
    train = content.train
    if train is None:
        return Exported(place, 0, 0, len(content.triggered.labels))
    _note_empty(train.labels, loaded.spec, form, say)
    return Exported(place, len(train.labels), int(train.poisoned.sum()), len(content.triggered.labels))


def branch_of(grid: Grid) -> Branch:
    """The training cell of a grid that names one, with its attack.

    Raises:
      UserError: an axis has several values, or the grid is not valid.
    """
    for axis in ONE:
        values = getattr(grid, axis)
        if len(values) != 1:
            shown = ", ".join(map(str, values)) or "none"
            raise UserError(f"exported data have one {ONE[axis]}; given {shown}")
    if grid.imported is not None:
        raise UserError("of an import folder only networks and their stored images are known: there is nothing to poison")
    (branch,) = cells(dataclasses.replace(grid, defense=(), defense_config={}, hyper={}))
    return branch


def _check(branch: Branch, grid: Grid, learning: Learning | None, test_only: bool) -> None:
    """Refuse settings that no image depends on, a learned trigger without results, and an attack without a training set."""
    name, attack = branch.train.attack, branch.attack
    idle = [f"recipe.{field}" for field in branch.train.recipe if field != "augment"]
    if idle:
        raise UserError(f"{', '.join(idle)}: no network is trained to export data, so this has no meaning here")
    if learning is not None and (learning.epochs, learning.batch) != (None, None):
        raise UserError("epochs and batch: no network is trained to export data, so this has no meaning here")
    if not test_only:
        poisoned.require_fixed(attack, name)
    if attack.update is None and learning is not None:
        raise UserError(f"--results: the trigger of {name} is not learned with a network, so this has no meaning here")
    if attack.update is not None and (learning is None or learning.results is None):
        raise UserError(f"{name} learns its trigger while a network is trained: name the folder of a run that did with --results")


def _made(
    branch: Branch, grid: Grid, loaded: Dataset, learning: Learning | None, test_only: bool, say: Callable[[str], None]
) -> tuple[Content, dict[str, Any]]:
    """The content of the folder, and what its manifest says of the trigger."""
    (seed,), (ratio,), attack, cell = grid.seeds, grid.poison_ratio, branch.attack, branch.train
    name = cell.attack.rpartition(":")[2]
    trace.attack(cell, attack, loaded)
    staged = stage(attack, loaded, root(cell.root))
    trigger: Trigger | None = None
    known: dict[str, Any] = {}
    if staged.test.triggered is None:
        found = ready(Named(cell.attack, cell, attack), loaded, learning or Learning(), seed, ratio, None, say)
        attack, trigger = found.attack, found.trigger
        known = {"trigger": found.note, "trigger_digest": array_digest(jax.tree.leaves(trigger.value))}
    spec = loaded.spec._replace(name=f"{loaded.spec.name}-{name}-{ratio:g}-{seed}")
    content = Content(spec, poisoned.triggered_set(attack, loaded, staged, trigger))
    if test_only:
        return content, known
    train = poisoned.training_set(attack, name, loaded, staged, seed=seed, ratio=ratio, root_number=cell.root)
    clean = Split(*(np.asarray(part) for part in loaded.test))  # type: ignore[arg-type]  # host arrays, as of a data set
    return content._replace(train=train, test=clean), {**known, "poisoned": int(train.poisoned.sum())}


def _described(branch: Branch, grid: Grid, loaded: Dataset, content: Content) -> dict[str, Any]:
    """What the manifest says of the member, its configuration and the program that made it."""
    cell, attack = branch.train, branch.attack
    config = build.described(cell, loaded.digest, branch.model, attack)
    del config["model"]  # no image depends on it, but for what the attack's own configuration says
    config["recipe"] = {"augment": attack.recipe.augment}
    target = goal.target(attack, cell.target)
    return {
        "name": None if content.train is None else content.spec.name,
        "seed": grid.seeds[0],
        "ratio": grid.poison_ratio[0],
        "target": target,
        "labels": goal.rule(attack.config),
        "class_names": list(loaded.spec.class_names),
        "config": plain(config),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


def _note_empty(labels: np.ndarray, spec: DataSpec, form: str, say: Callable[[str], None]) -> None:
    """Say which classes have no training image any more, because of what that means for whoever reads the folder."""
    empty = np.flatnonzero(np.bincount(labels, minlength=spec.classes) == 0).tolist()
    if empty:
        shown = ", ".join(map(str, empty[:PER_CLASS])) + (f" and {len(empty) - PER_CLASS} more" if len(empty) > PER_CLASS else "")
        remedy = "; a folder of images with an empty class is not read as a data set: use --form arrays" * (form == "images")
        say(f"the poison leaves no training image with label {shown}{remedy}")
