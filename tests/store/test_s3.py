"""What a sweep does in a store, through the packages that speak S3, against a server of this machine."""

import threading

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.store import atomic, conditional, location, objects
from bdjax.store import records as store
from tests.store import leased
from tests.sweep import small
from tests.sweep.small import GRID, refused, stable

pytestmark = pytest.mark.s3
URL = "s3://results/run"


@pytest.fixture(scope="module")
def server():
    """The address of a server with one bucket, known to this process and to those it starts."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    answer, one_at_a_time = server._server.app, threading.Lock()

    def atomically(environment, start):  # a condition and what depends on it are one step, as they are in S3
        with one_at_a_time:
            return answer(environment, start)

    server._server.app = atomically
    import fsspec

    address = "http://{}:{}".format(*server.get_host_and_port())
    found = {"endpoint_url": address, "key": "test", "secret": "test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", found)
        for name, value in found.items():
            patch.setenv(f"FSSPEC_S3_{name.upper()}", value)
        fsspec.filesystem("s3").mkdir("results")
        yield address
    server.stop()


@pytest.fixture(scope="module")
def records(server):
    """Those of a sweep into the bucket."""
    return small.go(GRID, URL)


def test_records_are_those_of_a_folder_and_nothing_is_made_twice(records, population):
    assert stable(records) == stable(population[1])
    before = location.versions(location.locate(URL), "*/*/*")
    assert stable(small.go(GRID, URL)) == stable(records)
    assert before and location.versions(location.locate(URL), "*/*/*") == before
    assert objects.listing(location.locate(URL) / "claims") == {}


def test_damaged_records_and_weights_are_quarantined_and_redone(records, capsys):
    out = location.locate(URL)
    for each in location.files(out / "records", "*/*.parquet"):
        objects.put(each, objects.get(each)[:-9])
    state = max(objects.listing(out / "models").items(), key=lambda item: item[1]["size"])[0]
    objects.put(out / "models" / state, b"short")
    assert store.read(URL).is_empty()
    assert stable(small.go(GRID, URL)) == stable(records)
    assert capsys.readouterr().err.count("is corrupt (") == 4
    small.go(GRID, URL)
    assert len(objects.listing(out / "records")) == 9  # three records, three seals, three that were quarantined


def test_commands_take_the_url(records, capsys):
    assert cli.main(["status", URL]) == 0
    assert f"{URL}: 3 of 3 cells finished" in capsys.readouterr().out
    assert cli.main(["report", URL]) == 0
    assert {"index.html", "table.csv", "table.md"} <= set(objects.listing(location.locate(URL)))
    assert cli.main(["cite", URL]) == 0
    assert cli.main(["reproduce", URL, "--defense", "clp", "--seed", "1", "--poison-ratio", "0.1"]) == 0
    assert "identical" in capsys.readouterr().out


def test_a_lease_is_exclusive_and_taken_from_the_dead(server):
    out = location.locate("s3://results/claimed")
    assert objects.creates_exclusively(out)
    with leased.held(out) as other:
        leased.lost_by_the_dead_alone(out, other, lambda _: None)
    assert objects.listing(out) == {}


def test_one_of_many_takes_a_lease_over(server):
    out = location.locate("s3://results/taken")
    assert conditional.tried(out).removes
    leased.one_takes_over(out, objects.put, many=3)
    assert objects.listing(out) == {}


def test_who_was_paused_finds_its_cell_lost(server):
    leased.lost_while_paused(location.locate("s3://results/paused"))


def test_a_server_that_ignores_conditions_is_found_out(server, monkeypatch):
    from moto.s3.responses import S3Response

    out = location.locate("s3://results/careless")
    for method, found in (("delete_object", "removes"), ("put_object", "its server ignores it")):
        heed = getattr(S3Response, method)

        def careless(self, heed=heed):
            self.headers = {name: value for name, value in self.headers.items() if name.lower() != "if-match"}
            return heed(self)

        monkeypatch.setattr(S3Response, method, careless)
        tried = conditional.tried(out)
        assert tried == found or not tried.removes
    assert objects.listing(out) == {}


def test_a_bucket_that_does_not_exist_is_one_line(server, capsys):
    with pytest.raises(UserError, match=r"cannot write s3://nowhere/run.*does not exist"):
        atomic.writable("s3://nowhere/run")
    assert "no folder of a sweep" in refused(capsys, "status", "s3://nowhere/run")
