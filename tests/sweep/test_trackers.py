"""Curves for TensorBoard and Weights & Biases: off by default, refused in one line, and nothing that goes wrong ends the work."""

import glob
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bdjax.errors import UserError
from bdjax.store import location
from bdjax.sweep import trackers
from bdjax.sweep.trackers import Backend, Scalars, Tracker
from tests.sweep.small import DATA, EXECUTION, refused

EPOCH = {
    "title": "digits / cnn / own/file.py:mine", "epoch": 3, "part": 1, "parts": 1, "loss_min": 0.5, "loss_median": 1.0,
    "loss_max": 2.0, "images_per_second": None,
}  # fmt: skip


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    assert "allowed: tensorboard, wandb" in refused(capsys, "run", "--log-to", "tensorbord", "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name, package in trackers.PACKAGES.items():
        told = refused(capsys, "run", "--log-to", name, "--out", tmp_path / "out")
        assert told.endswith(f"needs {package}, which is not installed; install it with: pip install {package}")
    assert not (tmp_path / "out").exists()


def test_one_name_is_a_list_of_one(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    assert trackers.checked("wandb", tmp_path) == trackers.checked(["wandb", "wandb"], tmp_path) == ("wandb",)
    assert trackers.checked((), tmp_path) == ()
    with pytest.raises(UserError, match="a folder of this machine, and memory://results is none; log to wandb"):
        trackers.checked("tensorboard", location.locate("memory://results"))


def test_what_is_drawn_of_an_event():
    name = "digits_cnn_own_file.py_mine"
    assert trackers.scalars("epoch", EPOCH) == Scalars(name, 3, {"loss_min": 0.5, "loss_median": 1.0, "loss_max": 2.0})
    assert trackers.scalars("epoch", {**EPOCH, "part": 2, "parts": 4, "images_per_second": 9.0}).cell == f"{name}_part_2"
    kept = trackers.scalars("checkpoint", {"title": "digits", "epoch": 4, "seconds": 0.5})
    assert kept == Scalars("digits", 4, {"checkpoint_seconds": 0.5})
    assert trackers.scalars("cell done", {"title": "digits", "line": "digits: trained"}) is None


def test_a_backend_that_fails_is_said_once_and_asked_no_more(capsys):
    written = []

    def write(found):
        written.append(found)
        raise RuntimeError("no network")

    tracker = Tracker("wandb", Backend(write, lambda: written.append("closed")))
    for _ in range(3):
        tracker.hear("epoch", EPOCH)
    tracker.close()
    told = capsys.readouterr().err.splitlines()
    assert told == ["bdjax: wandb cannot be written to: no network; the run goes on without it"] and len(written) == 1


def test_a_backend_that_hangs_does_not_hold_the_run_up(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    gate = threading.Event()
    tracker = Tracker("wandb", Backend(lambda found: gate.wait(10), lambda: None))
    tracker.hear("epoch", EPOCH)
    tracker.close()
    assert "what is left is given up" in capsys.readouterr().err
    gate.set()
    tracker._thread.join(10)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The folder of logs of a run with both trackers, in a process of its own."""
    pytest.importorskip("tensorboardX")
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("tracked")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "WANDB_MODE": "offline", "HOME": str(place / "home"), "BDJAX_CACHE_DIR": str(place / "cache")}
    command = [
        sys.executable, "-m", "bdjax", "run", "--dataset", "digits", "--model", "cnn", "--width", "4", "--epochs", "3",
        "--poison-ratio", "0.1", "--defense", "none", "--out", str(place / "out"), "--log-to", *trackers.PACKAGES,
        "--checkpoint-every", "0.001",
        *DATA, *EXECUTION,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return place / "out" / "logs"


def events(path):
    """What lies in a file of TensorBoard's: records of length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def records(content):
    """What lies in the file of a W&B run: after 7 bytes, LevelDB's log of blocks of 32 KiB whose records may be split."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, data = 7, b""
    while at < len(content):
        if at % 32768 > 32768 - 7:
            at += -at % 32768
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data, at = data + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part of it
            yield Record.FromString(data)
            data = b""


@pytest.mark.slow
def test_tensorboards_own_writer_keeps_the_curves(logs):
    (log,) = logs.glob("*.jsonl")
    (path,) = (logs / "tensorboard" / log.stem).iterdir()
    found = [(value.tag, event.step, value.simple_value) for event in events(path) for value in event.summary.value]
    name = "digits_cnn_badnets"
    tags = {f"{name}/{tag}" for tag in (*trackers.NUMBERS, "checkpoint_seconds")}
    assert {tag for tag, _, _ in found} == tags
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    logged = [(line["epoch"], line["loss_median"]) for line in lines if line["event"] == "epoch"]
    drawn = [(step, pytest.approx(value, rel=1e-5)) for tag, step, value in found if tag == f"{name}/loss_median"]
    assert logged == drawn and logged[-1][0] == 3


@pytest.mark.slow
def test_weights_and_biases_keeps_a_run_offline(logs):
    (file,) = glob.glob(str(logs / "wandb" / "offline-run-*" / "*.wandb"))
    found = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records(Path(file).read_bytes())
    ]
    name = "digits_cnn_badnets"
    losses = {step[f"{name}/epoch"]: step[f"{name}/loss_median"] for step in found if f"{name}/loss_median" in step}
    assert losses and max(losses) == 3 and all(0 < loss < 10 for loss in losses.values())
