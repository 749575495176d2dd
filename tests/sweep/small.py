"""A small backdoored population, the import folder its networks would come in, and commands that are to be refused."""

import dataclasses

import numpy as np

from bdjax.cli import main as cli
from bdjax.data import load
from bdjax.population import Execution
from bdjax.results import member, recreate
from bdjax.store import import_folder
from bdjax.store.import_folder import File, Import, Triggered
from bdjax.store.rows import VOLATILE
from bdjax.sweep import run as sweep
from bdjax.sweep.grid import Grid

HOW = Execution("sequential", "native", "dispatch")  # one compiled step serves any number of members: least to compile
EXECUTION = ["--strategy", "sequential", "--lowering", "native", "--loop", "dispatch"]
DATA = ["--train-images", "200", "--test-images", "100"]
GRID = Grid(
    defense=("ft", "clp"), poison_ratio=(0.0, 0.1), seeds=(0, 1), spc=(2,), width=4, epochs=4, batch=25, train_images=200,
    test_images=100, recipe={"lr": 0.1}, defense_config={"ft": {"epochs": 2}}, hyper={"ft": {"lr": (0.01, 0.1)}},
)  # fmt: skip
TOGETHER = Execution("vmap", "native", "dispatch")  # all members at once
POINTS = ((0, 0.0), (0, 0.1), (1, 0.0), (1, 0.1))
UNTRAINED = {"epochs": None, "batch": None, "recipe": {}}  # what a grid of imported networks must not say


def go(grid, out, **options):
    return sweep.run(grid, out, **{"execution": HOW, **options})


def grid_of(folder, **fields):
    """The grid of an import folder's networks, with the data and the defenses of the population above."""
    settings = {} if "ft" in fields.get("defense", GRID.defense) else {"defense_config": {}, "hyper": {}}
    given = {"attack": ("stored",), **settings, **UNTRAINED, **fields}
    return dataclasses.replace(GRID, imported=str(folder), **given)


def metrics(frame, defense):
    """{(seed, ratio, hyper): (ACC, ASR, RA)} of a defense's records."""
    rows = [row for row in frame.iter_rows(named=True) if row["defense"] == defense]
    return {(r["seed"], r["ratio"], r["hyper"]): (r["acc"], r["asr"], r["ra"]) for r in rows}


def stable(frame):
    return [{k: v for k, v in row.items() if k not in VOLATILE} for row in frame.iter_rows(named=True)]


def images():
    return load("digits", train_images=200, test_images=100)


def networks(out):
    """The trained variables of a folder of results, one per point."""
    return [member.find(out, {"seed": seed, "ratio": ratio}) for seed, ratio in POINTS]


def import_of(out, **fields):
    """The networks of a folder of results as an import would leave them, with the triggered test images of the whole test set."""
    found = networks(out)
    kept = recreate.triggered(found[0], images())
    whole = Import(
        model="cnn",
        width=4,
        classes=10,
        image_shape=(16, 16, 3),
        dataset="digits",
        sources=tuple(File(f"net{n}.pt", f"{n}" * 64) for n in range(4)),
        points=POINTS,
        variables=tuple(one.variables for one in found),
        network=(0, 1, 2, 3),
        kept=({},) * 4,
        triggered=kept,
    )
    return whole._replace(**fields)


def saved(path, found):
    import_folder.save(path, found)
    return path


def all_to_all(dataset):
    """Stored images of an attack with a target per class."""
    labels = np.asarray(dataset.test.labels)
    pixels = np.asarray(dataset.test.images).copy()
    pixels[:, -3:, -3:] = 255
    return Triggered(pixels, labels, (labels + 1) % 10, np.arange(len(labels)), len(labels))


def refused(capsys, *arguments):
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("bdjax: error: ") and captured.out == "", captured
    return lines[0]
