"""Fixtures of sweeps that tests of several rooms share: a population is trained once, and a cell compiled once."""

import shutil

import pytest


@pytest.fixture(scope="session")
def shared_programs():
    """Runs of the same cell compile it once in a process."""
    from tests.sweep.shared import programs

    with programs():
        yield


@pytest.fixture(scope="session")
def population(tmp_path_factory, shared_programs):
    """A folder of results and its records: four trained members, repaired by ft (two rates) and by clp."""
    from tests.sweep.small import GRID, go

    out = tmp_path_factory.mktemp("population")
    return out, go(GRID, out)


@pytest.fixture(scope="session")
def together(population, tmp_path_factory, shared_programs):
    """The same, but its members were repaired by clp all at once."""
    from bdjax.store import records
    from tests.sweep.small import GRID, TOGETHER, go

    out = shutil.copytree(population[0], tmp_path_factory.mktemp("together") / "out")
    for path in (out / "records").rglob("*.parquet"):
        if records.read_file(path)[0]["defense"] == "clp":
            path.unlink()
    return out, go(GRID, out, execution=TOGETHER)


@pytest.fixture(scope="session")
def imported(population, tmp_path_factory):
    """The same four networks as an import folder with the triggered test images."""
    from tests.sweep.small import import_of, saved

    return saved(tmp_path_factory.mktemp("imports") / "in", import_of(population[0]))
