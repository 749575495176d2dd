"""Triggers of the user's own as flags, in the hash of a cell, and across an edit of their file; nothing is trained."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bdjax.cli.flags import Scenario, grid_of
from bdjax.sweep import build, expand
from tests.sweep.small import refused

pytestmark = pytest.mark.usefixtures("own_cache")


def cell(attack, *config):
    grid = grid_of(Scenario(attack=attack, defense=("clp",), config=tuple(f"{attack}.{item}" for item in config)))
    return expand.cells(grid)[0].train


def name(attack, *config):
    return build.cell_hash(cell(attack, *config), "digest")


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_description_of_the_default_triggers_is_that_of_before():
    told = {
        attack: build.describe(cell(attack), "digest")["attack"]["config"] for attack in ("badnets", "blended", "wanet", "bpp")
    }
    labels = {"target": 0, "labels": "all_to_one"}
    assert told == {
        "badnets": labels,
        "blended": {**labels, "alpha": 0.2, "test_alpha": 0.2},
        "wanet": {**labels, "strength": 0.5, "grid": 4, "cross_ratio": 2, "augment": "batch", "max_ratio": 0.1},
        "bpp": {**labels, "levels": 8, "neg_ratio": 0.1, "augment": "batch", "max_ratio": 0.1},
    }


def test_every_setting_of_a_trigger_is_another_experiment_and_a_default_that_is_spelt_out_is_not():
    flags = [(), ("size=5",), ("place=top_left",), ("place=[2,3]",), ("colour=0",), ("colour=[255,0,0]",)]
    assert len({name("badnets", *given) for given in flags}) == len(flags)
    assert name("badnets", "place=bottom_right", "colour=255") == name("badnets")
    assert name("bpp", "dithering=true") != name("bpp") == name("bpp", "dithering=false")


def test_the_content_of_a_file_names_the_cell_and_its_path_does_not(picture, tmp_path):
    first = name("blended", f"picture={picture}")
    assert name("blended", f"picture={shutil.copy(picture, tmp_path / 'other name.png')}") == first != name("blended")
    assert str(tmp_path) not in json.dumps(build.describe(cell("blended", f"picture={picture}"), "digest"))
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[3, 4, 1] ^= 255
    Image.fromarray(pixels).save(picture)
    assert name("blended", f"picture={picture}") != first


def test_a_file_that_is_edited_or_lost_during_a_run_changes_nothing_in_it(picture):
    placed = cell("blended", f"picture={picture}")
    before = build.cell_hash(placed, "digest")
    picture.unlink()
    assert build.cell_hash(placed, "digest") == before
    told = build.describe(placed, "digest")["attack"]["config"]  # and a record is enough to build the attack again
    assert build.cell_hash(placed._replace(attack_config=told), "digest") == before


@pytest.mark.parametrize("command", ["run", "check", "plan"])
@pytest.mark.parametrize(
    ("attack", "setting", "message"),
    [
        ("badnets", "size=99", "badnets.size is 99; allowed: 1 … 16 pixels"),
        ("badnets", "place=[15,0]", "row 0 … 13"),
        ("badnets", "colour=999", "badnets.colour is 999"),
        ("badnets", "pattern=nowhere.png", "nowhere.png is not there"),
        ("blended", "pictur=a.png", "Did you mean 'picture'"),
        ("wanet", "field=nowhere.npy", "nowhere.npy is not there"),
        ("bpp", "dithering=perhaps", "bpp.dithering takes bool; given 'perhaps'"),
    ],
)
def test_mistakes_are_one_line_of_every_command(capsys, command, attack, setting, message):
    assert message in refused(capsys, command, "--attack", attack, "--config", f"{attack}.{setting}")
