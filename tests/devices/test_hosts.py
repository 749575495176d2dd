"""Several processes run one population together: its members lie on the devices of all of them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bdjax.cli import main as cli
from bdjax.population import hosts
from bdjax.store import records

GRID = """
from bdjax.sweep.grid import Grid

grid = Grid(
    defense=("ft", "clp"), poison_ratio=(0.0, 0.1), seeds=(0, 1, 2), spc=(2,), width=4, epochs=3, batch=50,
    train_images=200, test_images=100, defense_config={"ft": {"epochs": 2}},
)
"""
WORKER = """
import sys
import time
from bdjax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
EXECUTION = ["--strategy", "vmap", "--lowering", "native", "--loop", "scan", "--devices", "4"]


def start(folder: Path, out: Path, devices: int, *more: str) -> subprocess.Popen:
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", WORKER, "sweep", str(folder / "grid.py"), "--out", str(out), *EXECUTION, *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_one_process_is_the_leader_and_gets_its_own_broadcast():
    assert hosts.is_leader() and not hosts.is_multiprocess() and hosts.broadcast({"a": 1}) == {"a": 1}


@pytest.mark.slow
def test_two_processes_of_two_devices_make_what_one_of_four_makes(tmp_path):
    (tmp_path / "grid.py").write_text(GRID)
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    workers = [start(tmp_path, tmp_path / "two", 2, *together, str(i)) for i in range(2)]
    texts = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], texts
    assert "| badnets |" in texts[0] and "|" not in texts[1]  # the first one alone tells
    alone = start(tmp_path, tmp_path / "one", 4)
    assert alone.wait(timeout=600) == 0, alone.communicate()[0]
    first, second = records.read_rows(tmp_path / "one"), records.read_rows(tmp_path / "two")
    assert len(first) == len(second) == 18 and {row["status"] for row in second} == {"ok"}
    for one, two in zip(first, second, strict=True):
        same = ("cell", "member", "acc", "asr", "ra", "masks", "poisoned")
        assert [one[name] for name in same] == [two[name] for name in same]
    assert not list((tmp_path / "two" / "claims").iterdir())


@pytest.mark.slow
def test_two_processes_end_together_when_one_is_told_to_and_go_on_together(tmp_path):
    grid = GRID.replace('defense=("ft", "clp")', 'defense=("ft",)').replace("epochs=3", "epochs=8")
    (tmp_path / "grid.py").write_text(grid)

    def together(out):
        flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--checkpoint-every", "1", "--process"]
        return [start(tmp_path, tmp_path / out, 2, *flags, str(i)) for i in range(2)]

    stopped = together("cut")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "cut").glob("running/*/*/*/manifest.json")) and time.monotonic() < deadline:
        assert stopped[0].poll() is None, stopped[0].communicate()[0]
        time.sleep(0.1)
    stopped[1].send_signal(signal.SIGTERM)
    texts = [worker.communicate(timeout=120)[0] for worker in stopped]
    assert [worker.returncode for worker in stopped] == [143, 143], texts
    assert "the same command goes on where this one stopped" in texts[0] and not list((tmp_path / "cut" / "claims").iterdir())
    for out in ("cut", "whole"):
        workers = together(out)
        texts = [worker.communicate(timeout=600)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], texts
        assert ("goes on after epoch" in texts[0]) == (out == "cut"), texts[0]
    cut, whole = (records.read_rows(tmp_path / out) for out in ("cut", "whole"))
    same = ("member", "loss", "acc")
    assert [[row[name] for name in same] for row in cut] == [[row[name] for name in same] for row in whole]
    assert not list((tmp_path / "cut" / "running").iterdir())


def test_what_does_not_go_together_is_refused(tmp_path, capsys):
    (tmp_path / "grid.py").write_text(GRID)
    base = ["sweep", str(tmp_path / "grid.py"), "--out", str(tmp_path / "x")]
    for flags, message in (
        (["--process", "1"], "go with --coordinator"),
        (["--coordinator", "h:1", "--ray", "auto"], "give one"),
        (["--workers", "2"], "name it with --ray"),
    ):
        assert cli.main([*base, *flags]) == 2
        assert message in capsys.readouterr().err
