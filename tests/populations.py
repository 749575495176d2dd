"""Fixtures of sweeps that tests of several rooms share: a population is trained once, and a cell compiled once."""

import shutil

import pytest

RUNNING = ("plugins", "results", "store", "sweep")  # the rooms whose tests run cells


@pytest.fixture(autouse=True)
def same_programs(request):
    """Runs of the same cell compile it once, whichever room's test they belong to."""
    if request.path.parent.name in RUNNING:
        request.getfixturevalue("shared_programs")


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """What commands cache lies apart from the user's own, and no environment names data."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)


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
    return out, go(GRID, out, checkpoint_every=1e-3)


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
