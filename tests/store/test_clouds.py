"""Leases in Google's and Azure's storage, through the packages that speak with them, against small servers of this machine."""

import pytest

from bdjax.store import conditional, location, objects
from bdjax.store.leases import Leases
from tests.store import leased, small_server
from tests.store.leased import CELL

pytestmark = pytest.mark.clouds


def google(address):
    return {"endpoint_url": address, "token": "anon", "project": "tests"}


def azure(address):
    return {"connection_string": f"AccountName=account;AccountKey=a2V5;BlobEndpoint={address}/account"}


KINDS = {"gs": ("gcsfs", small_server.Google, google), "az": ("adlfs", small_server.Azure, azure)}


@pytest.fixture(params=KINDS)
def server(request, monkeypatch):
    """A server of a store with the empty bucket ``results``; it knows its own ``url``."""
    package, handler, options = KINDS[request.param]
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask another server what kind of bucket it is
    pytest.importorskip(package)
    import fsspec

    with small_server.serving(handler) as server:
        monkeypatch.setitem(fsspec.config.conf, request.param, options(server.address))
        server.url = f"{request.param}://results/run"
        yield server


@pytest.mark.parametrize("removes", [True, False])
def test_one_of_many_takes_a_lease_over(server, removes):
    server.heeds = lambda method: removes or method != "DELETE"
    out = location.locate(server.url)
    assert conditional.tried(out).removes is removes
    leased.one_takes_over(out, objects.put)
    assert list(objects.listing(out)) == ([] if removes else [f"claims/{CELL}.json"])


def test_who_was_paused_finds_its_cell_lost(server):
    leased.lost_while_paused(location.locate(server.url))


def test_a_lease_is_exclusive_and_given_back(server):
    out = location.locate(server.url)
    leased.one_of_many(out)
    assert objects.listing(out) == {}


def test_a_server_that_ignores_conditions_is_named(server):
    server.heeds = lambda method: False
    said, out = [], location.locate(server.url)
    with Leases(out, say=said.append) as mine, mine.lease(CELL) as got:
        assert got
    weak = "replace objects on a condition (its server ignores it)" if out.protocol == "gs" else "create objects exclusively"
    assert len(said) == 1 and said[0].startswith(f"{out.protocol}:// does not {weak}: ")  # adlfs alone is not asked to create
    assert objects.listing(out) == {}


def test_a_bucket_that_does_not_exist_is_one_line(server):
    from bdjax.errors import UserError

    with pytest.raises(UserError, match="nowhere"), Leases(location.locate(server.url.replace("results", "nowhere"))):
        pass
