"""A sweep on a Ray cluster of several nodes, one of which goes away while it works."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bdjax.errors import UserError
from bdjax.sweep import ray as on_ray
from tests.sweep.test_faults import QUICK, ended, prepare, whole, written

DRIVER = """
import sys
from bdjax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"GPU": 4.0, "CPU": 64.0}, ("GPU", 1, 4)),
        ({"TPU": 8.0, "CPU": 64.0}, ("TPU", 1, 8)),
        ({"CPU": 7.0}, ("CPU", 2, 3)),
        ({"CPU": 1.0}, ("CPU", 1, 1)),
    ],
)
def test_a_worker_gets_an_accelerator_or_two_cores(resources, expected):
    assert on_ray.share(resources) == expected


def test_a_cluster_without_anything_to_work_on_is_refused():
    with pytest.raises(UserError, match="neither GPUs, TPUs nor CPUs"):
        on_ray.share({"memory": 1e9})


@pytest.mark.slow
def test_a_node_that_goes_away_loses_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    expected = prepare(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))  # of the nodes' workers, which may be killed
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        out = tmp_path / "ray"
        command = ["sweep", str(tmp_path / "grid.py"), "--out", str(out), "--ray", cluster.address, *QUICK]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path.cwd()
        )
        deadline = time.monotonic() + 300
        while len(written(out)) < 2 and time.monotonic() < deadline:  # both nodes are at work
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        text = ended(driver)
        assert "2 workers on 3 machines, each with 2 CPU" in text, text
        whole(out, expected)
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_no_cluster_is_one_clear_line(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "grid.py").write_text("from bdjax.sweep.grid import Grid\ngrid = Grid()\n")
    arguments = ["sweep", str(tmp_path / "grid.py"), "--out", str(tmp_path / "x"), "--ray", "127.0.0.1:1"]
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1], done.stderr
