"""Eight simulated devices, strict dtypes and ranks, a compilation cache shared by the workers."""

import os
import pathlib
from importlib import metadata

# jaxlib 0.10 still has the older way to generate code for fused operations, which compiles a repair in half the time.
# Each flag once, though a worker inherits them: said twice they are another key of the compilation cache.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        [
            *os.environ.get("XLA_FLAGS", "").split(),
            "--xla_force_host_platform_device_count=8",
            *(["--xla_cpu_use_fusion_emitters=false"] if metadata.version("jaxlib").startswith("0.10.") else []),
        ]
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # see FULLY below; so also in the processes that tests start

# Compiled programs stay between runs, by the version of jax; JAX_COMPILATION_CACHE_DIR names another folder for them. Without
# the folder the tests take longer and are the same. Also what compiles in a moment is kept: there are thousands of such programs,
# and reading one takes half the time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        / "bdjax"
        / f"tests-jax-{metadata.version('jax')}"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import collections
import gc
import importlib.util

import jax
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import shapes

shapes.install()  # before anything imports what it checks

from tests.populations import (  # noqa: E402, F401  fixtures
    imported,
    own_cache,
    population,
    same_programs,
    shared_programs,
    together,
)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
gc.set_threshold(50_000, 20, 50)  # tracing makes many objects that stay: looking at them every 700 took 9 % of the time


# The tests of a file share what they compile: one process runs them all. In these it runs all of one method or one network.
BY_METHOD = ("contract/test_attacks.py", "contract/test_defenses.py", "models/test_defended.py", "test_export.py")


class Sharing(LoadScopeScheduling):
    """Which tests one process runs; by their ids, because pytest 9.2 and xdist 3.8 lose groups that are told by marks."""

    def _split_scope(self, nodeid):
        path, _, test = nodeid.partition("::")
        return f"{path} {test.partition('[')[2].partition('-')[0].rstrip(']')}" if path.endswith(BY_METHOD) else path


def pytest_xdist_make_scheduler(config, log):
    if config.getoption("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return Sharing(config, log)


GROUPS = ("slow", "real_data", "torch", "browser", "s3", "clouds", "tpu_compiler")


# Files whose few tests take a minute and more: begun first, so that no process works on one of them alone when all else is done.
LONG = (
    "test_learning.py",
    "sweep/test_faults.py",
    "sweep/test_ray.py",
    "test_against_pytorch.py",
    "test_real_archives.py",
    "test_hosts.py",
    "test_tpu_compiler.py",
)


@pytest.hookimpl(trylast=True)  # what -m leaves out is gone by then
def pytest_collection_modifyitems(items):
    """Reports name the groups of a test; a group whose means are not here is skipped; files with long tests come first."""
    without = {}
    if not os.environ.get("BDJAX_DATA_DIR"):
        without["real_data"] = "BDJAX_DATA_DIR is not set"
    if importlib.util.find_spec("torch") is None:
        without["torch"] = "torch is not installed"
    if not os.environ.get("BDJAX_LIBTPU"):
        without["tpu_compiler"] = "BDJAX_LIBTPU is not set"
    for item in items:
        groups = [group for group in GROUPS if item.get_closest_marker(group)]
        item.user_properties += [("group", group) for group in groups]
        for group in without.keys() & groups:
            item.add_marker(pytest.mark.skip(reason=without[group]))
    tests = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (not str(item.path).endswith(LONG), -tests[item.path], str(item.path)))  # stable within a file


# Most of the time of the tests goes to compiling, for programs that run for milliseconds; the optimisations that are left out are
# LLVM's: XLA's own, which rewrite what is computed, stay. These run long, are timed, or have bounds that are tighter than light
# compilation rounds, so they compile as users do. For a single function tests.networks.EXACT does that at no cost to others.
FULLY = (
    "tests/test_learning.py",
    "tests/benchmarks/test_lowerings.py::test_the_loop_keeps_its_convolution",
    "attacks/test_ssba.py",
    "test_phase_two_agrees_with_pytorch",
    "tests/docs/test_python.py::test_python_that_trains_runs",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile with few optimisations of the machine code; before fixtures, which compile too."""
    if item.get_closest_marker("skip"):
        return
    lightly = not any(part in item.nodeid for part in FULLY)
    if lightly != jax.config.values["jax_disable_most_optimizations"]:
        jax.config.update("jax_disable_most_optimizations", lightly)
        jax.clear_caches()  # kept for the process whichever way it was compiled: the two ways must not mix in a test


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Let go of compiled programs before a process holds more memory maps than Linux allows (65,530), which ends in a crash."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_spec():
    """A made-up data set: 8x8 colour images of 4 classes."""
    from bdjax.types import DataSpec

    return DataSpec("tiny", (8, 8, 3), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False, 1)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_spec):
    """Class k is bright in quadrant k, with noise: learnable in a few steps; 160 training and 80 test rows."""
    from bdjax.types import Dataset, Split

    generator = np.random.default_rng(0)

    def split(rows):
        labels = np.arange(rows, dtype=np.int32) % 4
        images = generator.integers(0, 90, (rows, 8, 8, 3), dtype=np.uint8)
        for k in range(4):
            y, x = 4 * (k // 2), 4 * (k % 2)
            images[labels == k, y : y + 4, x : x + 4] += 100
        return Split(images, labels)

    return Dataset(tiny_spec, split(160), split(80), "tiny")
