"""A sweep on a Ray cluster of several nodes, one of which goes away while it works."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sweep.test_faults import QUICK, ended, rows, start, whole

DRIVER = """
import sys
from bdjax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


GRID = """
from bdjax.sweep.grid import Grid

grid = Grid(
    attack=("badnets", "blended", "sig"), defense=("clp",), poison_ratio=(0.1,), seeds=(0, 1), width=4, epochs=12, batch=20,
    train_images=600, test_images=100,
)
"""
MEMBERS = 12  # of its cells, trained and defended


def trained(out):
    """The epochs of the newest snapshot of every cell in training, by its hash."""
    found = [path for path in (out / "running").glob("*/*/*") if re.fullmatch(r"\d+-\d+-\d+", path.name)]
    return {path.parents[1].name: int(path.name.split("-")[2]) for path in sorted(found)}


def training_on(out, logs):
    """A machine in the middle of a training that has a snapshot, and the epochs of that; None where there is none."""
    for cell, epochs in trained(out).items():
        claim = out / "claims" / f"{cell}.json"
        if claim.exists() and (lease := json.loads(claim.read_bytes() or b"{}")):
            (log,) = Path(logs).glob(f"worker-*-{lease['pid']}.err")
            return re.search(r"a worker begins on machine (\w+)", log.read_text())[1], epochs
    return None


def told(logs):
    """What the workers on each machine have printed, by the machine."""
    found = {}
    for path in Path(logs).glob("worker-*.err"):
        text = path.read_text(errors="replace")
        for machine in set(re.findall(r"a worker begins on machine (\w+)", text)):
            found[machine] = found.get(machine, "") + text
    return found


def until(condition, driver, seconds=400):
    """Wait for what is to happen while the driver works."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_machines_come_and_go_and_a_lost_cell_goes_on_at_its_snapshot(tmp_path, monkeypatch):
    """Of three machines one is killed in the middle of a training, and another comes."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    (tmp_path / "grid.py").write_text(GRID)
    ended(start(tmp_path, tmp_path / "undisturbed"))
    expected, out = rows(tmp_path / "undisturbed"), tmp_path / "ray"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))  # of the workers, which may be killed
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers else come last on a busy machine
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2) for _ in range(2))}
        logs = cluster.head_node.get_logs_dir_path()
        flags = ["--ray", cluster.address, "--checkpoint-every", "0.3", *QUICK]
        command = ["sweep", str(tmp_path / "grid.py"), "--out", str(out), *flags]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path.cwd()
        )
        found = []
        until(lambda: found.append(training_on(out, logs)) or found[-1], driver)
        lost, epochs = found[-1]
        cluster.remove_node(nodes[lost], allow_graceful=False)
        added = cluster.add_node(num_cpus=2).node_id
        text = ended(driver)
    finally:
        cluster.shutdown()
    assert "2 workers on 3 machines: 2 with 2 CPU and 1.0 GiB of memory each" in text, text
    whole(out, expected, MEMBERS)
    assert not trained(out), "snapshots were left"
    lines = told(logs)
    assert added in lines and "members, ACC" in lines[added], "the machine that came did nothing"
    went_on = [
        int(epoch) for machine in lines.keys() - {lost} for epoch in re.findall(r"goes on after epoch (\d+)/12", lines[machine])
    ]
    assert len(went_on) == 1 and epochs <= went_on[0] < 12, (went_on, epochs)


@pytest.mark.slow
def test_no_cluster_is_one_clear_line(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "grid.py").write_text("from bdjax.sweep.grid import Grid\ngrid = Grid()\n")
    arguments = ["sweep", str(tmp_path / "grid.py"), "--out", str(tmp_path / "x"), "--ray", "127.0.0.1:1"]
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1], done.stderr
