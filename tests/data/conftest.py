"""Every test has a cache of its own and no data directory; the real archives are decoded once for all tests."""

import pytest

from tests.data import made_up


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    if not request.node.get_closest_marker("real_data"):
        monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """The folder that holds cifar10/, the JPEG edition with 6 training and 2 test rows per class."""
    root = tmp_path / "data"
    made_up.cifar10_jpeg(root / "cifar10")
    made_up.declare(monkeypatch, "cifar10", "jpeg", root / "cifar10")
    return root


@pytest.fixture
def accept(data_dir, monkeypatch):
    """Declare the archives as they are now to be the right ones (after a test changed what they hold)."""
    return lambda: made_up.declare(monkeypatch, "cifar10", "jpeg", data_dir / "cifar10")


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    """One cache for the tests on the real archives: decoding takes seconds."""
    return tmp_path_factory.mktemp("cache")
