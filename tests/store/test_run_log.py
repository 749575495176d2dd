"""The log of a run: lines are there at once on a disk and every minute in a store, and nothing that goes wrong ends the work."""

import errno
import json
import os

import pytest

from bdjax.store import location, run_log
from bdjax.store.run_log import RunLog, new_name
from tests.sweep import bucket
from tests.sweep.bucket import Bucket


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of results in a store."""
    bucket.register()
    (tmp_path / "results").mkdir()
    monkeypatch.setenv(bucket.ROOT, str(tmp_path))
    return location.locate("bucket://results/run")


def numbers(path):
    return [json.loads(line)["number"] for line in location.read_bytes(path).splitlines()]


def test_a_line_is_there_as_soon_as_it_happened(tmp_path):
    log = RunLog(tmp_path, "one")
    assert not (tmp_path / "logs").exists()
    log.hear("epoch", {"loss": 0.5, "title": "größer"})
    (line,) = (tmp_path / "logs" / "one.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00") and found == {"event": "epoch", "loss": 0.5, "title": "größer"}
    log.hear("end", {"loss": None})
    log.close()
    assert len((tmp_path / "logs" / "one.jsonl").read_bytes().splitlines()) == 2


def test_no_two_logs_have_one_name():
    assert len({new_name() for _ in range(5)}) == 5


def test_a_full_disk_is_said_once_and_no_line_is_lost_or_broken(tmp_path, monkeypatch, capsys):
    log, write, room = RunLog(tmp_path, "one"), os.write, [30]

    def little(handle, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, room[0] = write(handle, data[: room[0]]), 0
        return written

    with monkeypatch.context() as patch:
        patch.setattr(run_log.os, "write", little)
        log.hear("epoch", {"number": 1})
        log.hear("epoch", {"number": 2})
    assert len((tmp_path / "logs" / "one.jsonl").read_bytes()) == 30
    log.hear("epoch", {"number": 3})
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "one.jsonl cannot be written: No space left on device; the run goes on" in told[0]
    assert numbers(tmp_path / "logs" / "one.jsonl") == [1, 2, 3]


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, capsys):
    (tmp_path / "logs").write_text("no folder")
    log = RunLog(tmp_path, "one")
    for number in range(3):
        log.hear("epoch", {"number": number})
    log.close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_in_a_store_all_lines_are_uploaded_together(store):
    log = RunLog(store, "one", uploaded=3600)
    for number in range(3):
        log.hear("epoch", {"number": number})
    assert not location.exists(store / "logs")
    log.close()
    assert numbers(store / "logs" / "one.jsonl") == [0, 1, 2]


def test_in_a_store_lines_are_uploaded_while_the_run_goes_on_and_a_long_log_goes_on_in_another_object(store, monkeypatch):
    monkeypatch.setattr(run_log, "PART", 100)
    log = RunLog(store, "one", uploaded=0.01)
    log.hear("epoch", {"number": 1})
    wait(lambda: location.exists(store / "logs" / "one.jsonl"))
    log.hear("epoch", {"number": 2})
    wait(lambda: log.path().name == "one.2.jsonl")
    log.hear("end", {"number": 3})
    log.close()
    assert [numbers(path) for path in location.files(store / "logs", "*")] == [[3], [1, 2]]


def test_a_store_that_is_away_for_a_while_costs_no_line(store, monkeypatch, capsys):
    def away(request, key):
        raise OSError("connection refused")

    log = RunLog(store, "one", uploaded=3600)
    log.hear("epoch", {"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "trouble", staticmethod(away))
        log._upload()
        log._upload()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "connection refused" in told[0]
    log.hear("epoch", {"number": 2})
    log.close()
    assert numbers(store / "logs" / "one.jsonl") == [1, 2]


def wait(until):
    import time

    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)
