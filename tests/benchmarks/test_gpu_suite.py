"""The suite for a GPU: from end to end with nothing but what it says it needs, and what it does about time and failures."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

from bdjax.data.array_folder import write_arrays
from bdjax.population import Execution
from benchmarks import gpu_torch
from benchmarks.gpu_rows import Suite
from benchmarks.measure import synthetic
from tests.examples import TOP

NEEDED = ("jax", "jaxlib", "flax", "optax", "numpy", "pyarrow", "pillow")
SMALL = (
    "--minutes 1 --model cnn --width 4 --size 8 --matmul 64 --batch 20 --steps 1 --members 1 --population 2 --chunk 2 --spc 1 "
    "--defenses ft --epochs 1 --seeds 1 --repairs clp --repair-spc 1 --dtype float32"
)
# Python imports this module at its start: of what is installed, only what is on the list is found.
ABSENT = """
import sys
from importlib.machinery import PathFinder

ALLOWED = set({allowed!r})


class OnlyTheNeeded:
    @staticmethod
    def find_spec(name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target)
        places = [] if found is None else [found.origin or "", *(found.submodule_search_locations or [])]
        installed = any("-packages" in place for place in places)
        return None if installed and name.split(".")[0] not in ALLOWED else found

    @staticmethod
    def invalidate_caches():
        PathFinder.invalidate_caches()

    @staticmethod
    def find_distributions(*args, **kwargs):
        return PathFinder.find_distributions(*args, **kwargs)


sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__ in (None, "_frozen_importlib", "builtins")]
sys.meta_path.append(OnlyTheNeeded)
"""


def modules():
    """Top-level modules of what the suite needs, and of what that requires in turn."""
    wanted, found = list(NEEDED), set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # a requirement of another platform
            wanted += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]
    owners = importlib.metadata.packages_distributions()
    return sorted(module for module, names in owners.items() if {re.sub(r"[-_.]+", "-", n).lower() for n in names} & found)


@pytest.fixture
def bare(tmp_path):
    """The environment of a process in which nothing else is installed."""
    allowed = [*modules(), "bdjax", "benchmarks"]
    assert not {"polars", "tyro", "tensorflow_datasets", "torch", "chex", "skimage", "sklearn", "matplotlib"} & set(allowed)
    home = tmp_path / "bare"
    home.mkdir()
    (home / "sitecustomize.py").write_text(ABSENT.format(allowed=allowed))
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "BDJAX_DATA_DIR")}
    return {**kept, "PYTHONPATH": f"{home}{os.pathsep}{TOP}", "BDJAX_CACHE_DIR": str(tmp_path / "cache")}


def suite(env, out, flags):
    command = [sys.executable, "-m", "benchmarks.gpu_suite", *flags.split(), "--out", str(out)]
    done = subprocess.run(command, cwd=TOP, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.with_suffix(".json").read_text())["rows"]


def folder(tmp_path):
    dataset = synthetic(100, 20, 8)
    return write_arrays(tmp_path / "images", dataset._replace(spec=dataset.spec._replace(name="made_up")))


@pytest.mark.slow
def test_the_whole_suite_runs_with_nothing_else_installed(bare, tmp_path):
    code = "import polars"
    assert subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, check=False).returncode == 1
    rows = suite(bare, tmp_path / "table", f"{SMALL} --dataset {folder(tmp_path)}")
    assert not [row for row in rows if "failed" in row]
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["headline", "defenses", "cifar"]
    torch = [row for row in rows if row.get("how", "").startswith("PyTorch")]
    assert len(torch) == 2 and all(row["skipped"] == "PyTorch is not installed here" for row in torch)
    headline = [row for row in rows if row["part"] == "headline"]
    assert headline[0]["TFLOP/s"] > 0 and headline[1]["MFU"] > 0 and len(headline) == 5
    networks = {(row["attack"], row["defense"]): row for row in rows if row["what"] == "network"}
    assert {attack for attack, _ in networks} == {"badnets", "never attacked", "wanet"}
    assert {defense for _, defense in networks} == {"none", "clp"}
    assert all(0 <= row[rate] <= 1 for row in networks.values() for rate in ("ACC", "ASR", "RA"))
    assert all(len({"skipped", "img/s", "experiments/min", "seconds", "ACC", "TFLOP/s"} & row.keys()) >= 1 for row in rows)


def test_without_data_a_row_says_so_and_nothing_else_is_imported(bare, tmp_path):
    rows = suite(bare, tmp_path / "table", f"{SMALL} --parts cifar --data-dir {tmp_path}")
    assert len(rows) == 1 and rows[0]["what"] == "cifar10" and "cannot be read" in rows[0]["skipped"]
    assert "cifar10" in (tmp_path / "table.md").read_text()


def rows_of(tmp_path, minutes=10.0):
    return Suite(tmp_path / "table", "python", "", minutes)


def test_what_does_not_fit_and_what_fails_are_rows(tmp_path):
    made = rows_of(tmp_path)
    ran = []
    assert made.attempt({"what": "long"}, 601, lambda: ran.append(1)) is None
    assert made.attempt({"what": "broken"}, 0, lambda: 1 / 0) is None
    assert made.attempt({"what": "good"}, 0, lambda: {"img/s": 1.0}) == {"what": "good", "img/s": 1.0}
    with made.part("a part", 0.0):
        assert made.attempt({"what": "late"}, 0, lambda: ran.append(1)) is None
        raise ValueError("it broke off")
    with made.part("another", 1.0):
        assert 59 < made.left() <= 60
    assert not ran
    read = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["what"], row.get("skipped", row.get("failed"))) for row in read] == [
        ("long", read[0]["skipped"]),
        ("broken", "ZeroDivisionError: division by zero"),
        ("good", None),
        ("late", "it needs about 0 s, and 0 s are left"),
        ("the part stopped", "ValueError: it broke off"),
    ]
    assert read[0]["skipped"].startswith("it needs about 601 s, and ")


def test_estimates_come_from_what_was_measured(tmp_path):
    made = rows_of(tmp_path)
    alone, repeated, grouped = Execution("sequential"), Execution("vmap", "unrolled"), Execution("vmap", "native")
    assert made.compile_seconds(alone, 8) == made.work_seconds(1000) == 0 and made.best() is None
    made.learn(alone, 1, 100.0, 10.0)
    made.learn(alone, 8, 120.0, 0.1)  # no new program: what one took is kept
    assert made.compile_seconds(alone, 32) == 10 and made.work_seconds(1200) == 10
    assert made.compile_seconds(grouped, 8) == 15 and made.compile_seconds(repeated, 8) == 40
    made.learn(repeated, 8, 240.0, 16.0)
    assert made.compile_seconds(repeated, 32) == 64 and made.best() == repeated
    assert made.work_seconds(1200, alone) == 10 and made.work_seconds(1200) == made.work_seconds(1200, grouped) == 5
    made.ceiling, made.macs = 1200.0, 2
    assert made.mfu(50.0) == 0.5


JOB = dict(
    work="train", network="cnn", width=4, size=8, classes=10, mean=[0.5] * 3, std=[0.25] * 3, batch=4, rows=8, epochs=1,
    eval_images=0, dtype="float32", device="cpu", sgd=[0.01, 0.9, 5e-4],
)  # fmt: skip


@pytest.mark.torch
def test_pytorch_runs_in_a_process_of_its_own():
    pytest.importorskip("torch")
    found = gpu_torch.beside(JOB, compiled=False, models=2, repeats=1, limit=240)
    assert found["images"] == 2 * 8 and min(found["best"], found["first"]) > 0 and found["torch"]
    found = gpu_torch.beside({**JOB, "network": "vgg19_bn"}, compiled=False, models=1, repeats=1, limit=240)
    assert found == {"absent": "there is no PyTorch reference of vgg19_bn"}


def test_pytorch_that_takes_too_long_is_an_error():
    with pytest.raises(RuntimeError, match="did not finish within 0 s"):
        gpu_torch.beside(JOB, compiled=False, models=1, repeats=1, limit=0.01)


@pytest.mark.torch
def test_pytorch_that_fails_is_an_error_with_its_reason():
    pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match="KeyError: 'device'"):
        gpu_torch.beside({}, compiled=False, models=1, repeats=1, limit=240)
