"""A network out of a folder of results: found by its record, defended again, with the images it was measured on."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import data
from bdjax.errors import UserError
from bdjax.population import Execution
from bdjax.results import member, recreate
from tests.sweep.small import GRID, POINTS, all_to_all, go, grid_of, images, import_of, saved

RATES = [{"lr": lr} for lr in (0.01, 0.1)]
MEMBERS = """
import jax
import jax.numpy as jnp

from bdjax.attacks.badnets.badnets import badnets
from bdjax.attacks.badnets.badnets import Config
from bdjax.types import Recipe

HIT = 1.0


def mine(spec, config=None, *, profile="corrected"):
    '''Every member has a patch of its own colour.'''
    attack = badnets(spec, config, profile=profile)

    def init(key, assets):
        return {"colour": HIT * jnp.round(255 * jax.random.uniform(key, (3,))) / 255}

    def stamp(trigger, key, images):
        return images.at[:, -3:, -3:].set(trigger["colour"])

    return attack._replace(init=init, stamp=stamp, recipe=Recipe(shared_trigger=False))
"""


def accuracy(found, variables, pixels, labels):
    """By a plain forward pass over all rows at once."""
    model = member.network(found)
    logits = jax.jit(lambda v, x: model.apply(v, x).logits)(variables, jnp.asarray(pixels, jnp.float32) / 255)
    return float((np.argmax(logits, -1) == np.asarray(labels)).mean())


def check_defended(out, dataset, folder=None, **wanted):
    """The defended network is that of its record, in its own count and in a plain forward pass."""
    found = member.find(out, wanted)
    again = recreate.defend(found, member.network(found), dataset, folder)
    assert {name: again.measured[name] for name in ("acc", "asr", "ra", "der")} == {
        name: found.row[name] for name in ("acc", "asr", "ra", "der")
    }
    pictures = recreate.triggered(found, dataset, folder)
    assert accuracy(found, again.variables, dataset.test.images, dataset.test.labels) == pytest.approx(found.row["acc"])
    assert accuracy(found, again.variables, pictures.images, pictures.attack_labels) == pytest.approx(found.row["asr"])
    return again.variables, found


def full(hyper, frame):
    """A record's spelling of all hyper-parameters of ft."""
    rows = frame.filter(frame["defense"] == "ft")["hyper"].unique().to_list()
    (text,) = [row for row in rows if json.loads(row)["lr"] == hyper["lr"]]
    return text


@pytest.mark.parametrize("hyper", RATES)
def test_a_tuned_network_is_that_of_its_record(population, hyper):
    out, frame = population
    variables, found = check_defended(out, images(), defense="ft", seed=1, ratio=0.1, hyper=full(hyper, frame))
    assert not np.array_equal(variables["params"]["linear"]["kernel"], found.variables["params"]["linear"]["kernel"])


def test_a_pruned_network_is_that_of_its_record(population):
    variables, found = check_defended(population[0], images(), defense="clp", seed=0, ratio=0.1)
    for address, layer in json.loads(found.row["masks"]).items():
        assert not np.any(variables["params"][address]["scale"][layer["pruned"]])


@pytest.mark.parametrize("defense", ["clp", "ft"])
def test_a_repair_of_an_imported_network_is_that_of_its_record(population, imported, tmp_path, defense):
    go(grid_of(imported, defense=(defense,), hyper={}), tmp_path)
    check_defended(tmp_path, images(), str(imported), defense=defense, seed=0, ratio=0.1)


def test_the_execution_is_that_of_the_record_on_the_same_device_alone(population):
    row = member.find(population[0], {"seed": 0, "ratio": 0.1}).row
    model = member.network(member.find(population[0], {"seed": 0, "ratio": 0.1}))
    assert recreate._execution(row, model) == Execution("sequential", "native", "dispatch")
    assert recreate._execution({**row, "device": "another"}, model).lowering == "mixed"
    earlier = row["execution"].replace("sequential", "loop")  # the strategy's name in records of earlier versions
    assert recreate._execution({**row, "execution": earlier}, model).strategy == "sequential"


def test_triggered_images_are_what_was_measured(population):
    out, dataset = population[0], images()
    for seed, ratio in POINTS:
        found = member.find(out, {"seed": seed, "ratio": ratio})
        pictures = recreate.triggered(found, dataset)
        assert len(pictures.labels) == 90 and pictures.rows == 100 and 0 not in pictures.labels
        np.testing.assert_array_equal(dataset.test.labels[pictures.index], pictures.labels)
        expected = np.asarray(dataset.test.images[pictures.index]).copy()
        expected[:, -3:, -3:] = 255
        np.testing.assert_array_equal(pictures.images, expected)
        assert accuracy(found, found.variables, pictures.images, pictures.attack_labels) == pytest.approx(found.row["asr"])


def test_stored_images_keep_their_rows_of_the_test_set(population, imported, tmp_path):
    """They do not depend on how much of the test set a run uses: here less than there are stored images."""
    go(grid_of(imported, defense=("clp",), seeds=(0,), poison_ratio=(0.1,), test_images=50), tmp_path)
    found = member.find(tmp_path, {})
    want = recreate.triggered(member.find(population[0], {"seed": 0, "ratio": 0.1}), images())
    got = recreate.triggered(found, data.load("digits", train_images=200, test_images=50), str(imported))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    every = saved(tmp_path / "all", import_of(population[0], triggered=all_to_all(images())))
    go(grid_of(every, defense=("clp",), seeds=(0,), poison_ratio=(0.1,)), tmp_path / "out")
    check_defended(tmp_path / "out", images(), str(every), defense="clp")


@pytest.mark.slow
def test_a_trigger_that_differs_between_members(tmp_path):
    """The very one a member was trained and measured with; once its file changes, nobody can tell what it was."""
    file = tmp_path / "mine.py"
    file.write_text(MEMBERS)
    name, out = f"{file}:mine", tmp_path / "out"
    grid = dataclasses.replace(GRID, attack=(name,), defense=("clp",), poison_ratio=(0.1,), hyper={}, defense_config={})
    go(dataclasses.replace(grid, epochs=2), out)
    found = [member.find(out, {"seed": seed}) for seed in (0, 1)]
    corners = [recreate.triggered(one, images()).images[:, -1, -1] for one in found]
    assert all((corner == corner[0]).all() for corner in corners)
    assert (corners[0][0] != corners[1][0]).any()
    for seed in (0, 1):
        check_defended(out, images(), defense="clp", seed=seed)
    file.write_text(file.read_text().replace("HIT = 1.0", "HIT = 0.5"))
    with pytest.raises(UserError, match="was edited since the record was made"):
        recreate.triggered(found[0], images())


def test_a_network_is_found_by_what_tells_it_apart(population):
    out, frame = population
    found = member.find(out, {"seed": 1, "ratio": 0.0, "defense": None, "spc": None})
    assert (found.row["defense"], found.row["seed"], found.row["ratio"]) == ("none", 1, 0.0)
    cell = frame.filter(frame["defense"] == "clp")["cell"][0]
    assert member.find(out, {"cell": cell, "defense": "clp", "seed": 0, "ratio": 0.1}).row["cell"] == cell
    for wanted, text in (
        ({}, r"^4 networks of .* match defense none; it holds seed: 0, 1; ratio: 0\.0, 0\.1$"),
        ({"defense": "ft", "seed": 0, "ratio": 0.1}, r"^2 networks .*; it holds hyper: \{.*0\.01.*\{.*0\.1.*\}$"),
        ({"defense": "fp"}, r"^no networks of .* match defense fp; it holds defense: clp, ft, none; spc: 2, None; .*seed: 0, 1"),
        ({"defense": "clp", "spc": 2}, "no networks"),
        ({"seed": 2}, "no networks"),
        ({"model": "vgg19_bn"}, "no networks of .* match defense none, model vgg19_bn"),
    ):
        with pytest.raises(UserError, match=text):
            member.find(out, wanted)
    with pytest.raises(UserError, match="is no folder of results"):
        member.find(out / "nowhere", {})


def test_weights_that_are_gone_are_said_to_be(population, tmp_path):
    out = shutil.copytree(population[0], tmp_path / "out")
    shutil.rmtree(out / "models")
    with pytest.raises(UserError, match="the weights of this member are no longer in"):
        member.find(out, {"seed": 0, "ratio": 0.1, "defense": "clp"})


def test_other_images_are_refused(population, imported, tmp_path):
    found = member.find(population[0], {"seed": 0, "ratio": 0.1, "defense": "clp"})
    other = data.load("digits", train_images=200, test_images=50)
    for make in (lambda: recreate.triggered(found, other), lambda: recreate.defend(found, member.network(found), other)):
        with pytest.raises(UserError, match="these images of digits are not those of the record"):
            make()
    go(grid_of(imported, defense=("clp",), seeds=(0,), poison_ratio=(0.1,)), tmp_path / "out")
    found = member.find(tmp_path / "out", {"defense": "clp"})
    with pytest.raises(UserError, match="name it with --imported"):
        recreate.triggered(found, images())
    changed = saved(tmp_path / "in", import_of(population[0], triggered=all_to_all(images())))
    with pytest.raises(UserError, match="is not what this network was imported from"):
        recreate.triggered(found, images(), str(changed))
