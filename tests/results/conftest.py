"""Runs of the same cell compile it once, whichever room's test they belong to."""

import pytest

from tests.reporting.conftest import one_seed, records, sketched  # noqa: F401  fixtures


@pytest.fixture(autouse=True)
def _shared(shared_programs):
    yield


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """What commands cache is apart from the user's own, and no environment names data."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)
