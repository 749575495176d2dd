"""What a TPU's own compiler makes of our programs, for chips that are not here.

``BDJAX_LIBTPU`` names the folder with the compiler: ``pip install --target FOLDER --no-deps libtpu``. Only the processes that
these tests start have it on their path.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdjax.population.chips import TPUS

pytestmark = pytest.mark.tpu_compiler
TOP = Path(__file__).parents[2]
OURS = ("train", "train/sequential", "evaluate", "defend:clp", "defend:ft", "defend:fp", "defend:anp")
PLAN = ("plan", "--dataset", "digits", "--model", "cnn", "--width", "4", "--defense", "ft", "--hardware", "tpu:v5e-8")
SPEEDS = r"training: ([\d,]+) images/s \(the compiler estimates [\d,]+ cycles of a step at 1\.50 GHz\), [\d.e+-]+ device-hours"


def run(*words, platforms="cpu", cache=None):
    """Run Python on a module, or on ``-c`` and a text, with the compiler on its path."""
    left = ("JAX_", "XLA_", "TPU_", "BDJAX_")
    given = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    given["PYTHONPATH"] = os.pathsep.join([str(TOP), os.environ["BDJAX_LIBTPU"]])
    given |= {"JAX_PLATFORMS": platforms} if platforms else {}
    given |= {"BDJAX_CACHE_DIR": str(cache)} if cache else {}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=given, cwd=TOP, check=False)


def programs(chips, *works):
    """What the compiler says of each work over so many chips of a v5e, by its name."""
    done = run("-m", "tests.population.tpu_programs", "v5e", str(chips), *works)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["work"] for one in found] == list(works)
    return {one["work"]: one for one in found}


@pytest.fixture(scope="module")
def four():
    return programs(4, *OURS, "talk")


@pytest.fixture(scope="module")
def sixteen():
    return programs(16, "train", "defend:ft")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("work", OURS)
def test_no_chip_waits_for_another(work, four):
    one = four[work]
    assert one["collectives"] == [] and one["loops"] > 0 and one["cycles"] > 0
    assert 0 < one["bytes"] < TPUS["v5e"].memory


def test_chips_that_add_up_over_all_of_them_are_found(four):
    assert four["talk"]["collectives"]


@pytest.mark.parametrize("work", ["train", "defend:ft"])
def test_sixteen_chips_are_as_far_apart_as_four(work, four, sixteen):
    """A chip has one member there too, and so the same program."""
    assert sixteen[work] == four[work]


def test_a_plan_for_a_slice_says_what_training_takes(cache):
    done = run("-m", "bdjax", *PLAN, "--price", "1.2", cache=cache)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "cnn, batch 128: compiling for v5e\n"
    assert done.stdout.startswith("planned for tpu:v5e-8, by its compiler: estimates, nothing was measured\n")
    speed = re.search(SPEEDS, done.stdout)
    assert speed and int(speed[1].replace(",", "")) > 1000
    assert re.search(r"memory: per member .+ of parameters and momentum\); [\d,]+ members fit a device\n", done.stdout)
    assert "execution: default of v5e: vmap/native/scan, 8 devices\n" in done.stdout
    assert "devices: 2 members do not fill 8; the time of idle ones is not counted\n" in done.stdout
    assert re.search(r"in all at least \S+ device-hours, \S+ days of 8 devices\nat 1\.2 a device-hour: [\d.e+-]+\n", done.stdout)


def test_a_plan_is_kept_and_adds_up(cache):
    first = json.loads(run("-m", "bdjax", *PLAN, "--json", cache=cache).stdout)
    again = run("-m", "bdjax", *PLAN, "--price", "1000000", cache=cache)
    assert again.returncode == 0 and again.stderr == "", again.stderr  # nothing is compiled again
    (cell,) = first["cells"]
    assert cell["hours"] == pytest.approx(cell["images"] / cell["rate"] * 8 / 3600)
    bill = float(re.search(r"at 1e\+06 a device-hour: ([\d.,e+-]+)", again.stdout)[1].replace(",", ""))
    assert bill == pytest.approx((first["training_hours"] + first["defense_hours"]) * 1e6, rel=0.01)


def test_jax_alone_complains_that_there_is_no_tpu():
    """So that the silence of the next test means something."""
    assert "TPU" in run("-c", "import jax; jax.devices()", platforms=None).stderr


@pytest.mark.parametrize("words", [("ls", "defenses"), ("plan", "--dataset", "digits", "--no-tune", "--no-memory")])
def test_a_machine_without_a_tpu_is_not_told_so(words, cache):
    done = run("-m", "bdjax", *words, platforms=None, cache=cache)
    assert done.returncode == 0 and done.stderr == "" and done.stdout
