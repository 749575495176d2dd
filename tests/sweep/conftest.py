"""The population that the tests of imported and exported networks share: it is trained once."""

import shutil

import pytest

from bdjax.store import records
from tests.sweep.shared import programs
from tests.sweep.small import GRID, TOGETHER, go, import_of, saved


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Runs of the same cell compile it once in a process."""
    with programs():
        yield


@pytest.fixture(scope="session")
def population(tmp_path_factory):
    """A folder of results and its records: four trained members, repaired by ft (two rates) and by clp."""
    out = tmp_path_factory.mktemp("population")
    return out, go(GRID, out)


@pytest.fixture(scope="session")
def together(population, tmp_path_factory):
    """The same, but its members were repaired by clp all at once."""
    out = shutil.copytree(population[0], tmp_path_factory.mktemp("together") / "out")
    for path in (out / "records").rglob("*.parquet"):
        if records.read_file(path)[0]["defense"] == "clp":
            path.unlink()
    return out, go(GRID, out, execution=TOGETHER)


@pytest.fixture(scope="session")
def imported(population, tmp_path_factory):
    """The same four networks as an import folder with the triggered test images."""
    return saved(tmp_path_factory.mktemp("imports") / "in", import_of(population[0]))


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """What commands cache lies apart from the user's own, and no environment names data."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)
