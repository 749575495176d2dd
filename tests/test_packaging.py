"""What lies beside the package agrees with it: one version, and examples that run as they are printed."""

import re
import tomllib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bdjax
from bdjax.data import spec
from bdjax.models import MODELS
from bdjax.types import CleanSet, DefenderView
from tests.examples import TOP, blocks, written


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^version: (.*)$", (TOP / "CITATION.cff").read_text(), re.M)[1] == bdjax.__version__
    assert re.search(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.M)[1] == bdjax.__version__
    assert "version" in tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dynamic"]


@pytest.fixture
def examples(tmp_path):
    """The Python blocks of CONTRIBUTING.md as files."""
    assert set(blocks()) == {"frame", "loud", "anchor", "tiny"}
    return written(tmp_path)


def test_the_example_attack_runs_as_printed(examples):
    from bdjax.attacks.table import ATTACKS
    from bdjax.plugins.load import factory

    make = factory("attack", f"{examples}/frame.py:frame", ATTACKS)
    wide = make(spec("digits"), {"pixels": 2}, profile="corrected")
    assert wide.config.pixels == 2 and float(wide.stamp({}, None, jnp.zeros((1, 16, 16, 3), jnp.float32)).sum()) == 3 * (
        256 - 144
    )
    attack = make(spec("digits"), {"target": 3}, profile="corrected")
    stamped = attack.stamp(attack.init(jax.random.key(0), None), jax.random.key(1), jnp.zeros((2, 16, 16, 3), jnp.float32))
    assert stamped.dtype == jnp.float32 and float(stamped.sum()) == 2 * 3 * (16 * 16 - 14 * 14)
    assert attack.relabel(jnp.arange(4, dtype=jnp.int32)).tolist() == [3] * 4


def test_the_example_defense_runs_as_printed(examples):
    from bdjax.defenses.table import DEFENSES
    from bdjax.plugins.load import factory

    model = MODELS["cnn"](spec("digits"), width=4)
    defense = factory("defense", f"{examples}/loud.py:loud", DEFENSES)(model, None, profile="corrected")
    variables = model.init(jax.random.key(0))
    norm = model.arch.norms[0]
    node = variables["params"]
    for part in norm.split("/"):
        node = node[part]
    node["scale"] = jnp.asarray(np.r_[[9.0], np.ones(node["scale"].shape[0] - 1)], jnp.float32)
    defended = defense.defend(jax.random.key(0), DefenderView(variables), defense.hyper)
    assert defended.trace.pruned.tolist() == [1] + [0] * (len(model.arch.norms) - 1)
    assert defended.masks[norm].tolist()[:2] == [0.0, 1.0]


def test_the_example_network_runs_as_printed(examples):
    from bdjax.plugins.networks import network

    model = network(f"{examples}/tiny.py:tiny", spec("digits"), width=4)
    variables = model.init(jax.random.key(0))
    out = model.apply(variables, jnp.zeros((2, 16, 16, 3), jnp.float32), record=("stage2",))
    assert out.logits.shape == (2, 10) and out.taps["stage2"].shape == (2, 8, 8, 8)
    assert len(blocks()["tiny"].splitlines()) < 40


def test_the_addresses_that_the_page_lists_are_those_that_defenses_read():
    from bdjax.defenses.reads import ADDRESSES
    from bdjax.defenses.table import DEFENSES

    page = (TOP / "CONTRIBUTING.md").read_text().split("## Add a network")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", page, re.M)
    assert {field: set(re.findall(r"\w+", names)) for field, names in rows} == {
        field: {name for name, make in DEFENSES.items() if field in getattr(make, "reads", ())} for field in ADDRESSES
    }


def test_the_example_that_tunes_runs_as_printed(examples):
    from bdjax.defenses.table import DEFENSES
    from bdjax.plugins.load import factory

    model = MODELS["cnn"](spec("digits"), width=4)
    defense = factory("defense", f"{examples}/anchor.py:anchor", DEFENSES)(model, {"epochs": 1, "batch": 4}, profile="corrected")
    variables, labels = model.init(jax.random.key(0)), jnp.arange(4, dtype=jnp.int32)
    clean = CleanSet(jnp.zeros((4, 16, 16, 3), jnp.uint8), labels, jnp.ones(4, jnp.int8), jnp.int32(1))
    run, hyper = jax.jit(defense.defend), jax.tree.map(jnp.asarray, defense.hyper)
    back, moved = (
        run(jax.random.key(0), DefenderView(variables, clean), hyper._replace(back=jnp.float32(share))) for share in (1, 0)
    )
    chex.assert_trees_all_equal(back.variables["params"], variables["params"])
    assert bool(moved.trace.alive) and moved.trace.loss.shape == (1,)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), moved.variables["params"], variables["params"])
    assert not all(jax.tree.leaves(same))
