"""What exists as a table that fits, and one of it in full: settings, hyper-parameters, what it needs, its paper."""

import json
import re
import sys

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.cli import main as cli
from bdjax.data import DATASETS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from tests.examples import written
from tests.sweep.small import refused

PLUGIN = '''"""A defense of the user's own."""
from typing import Any, NamedTuple
import numpy as np
from bdjax.configure import configure
from bdjax.types import PROFILES, Defended, Defense


class Config(NamedTuple):
    bias: bool = True  # a pruned channel loses it


class Hyper(NamedTuple):
    factor: Any = np.float32(0.3)  # times the median
    plain: Any = np.float32(1)


def mine(model, config=None, *, profile="corrected"):
    """Do nothing.

    Source: nobody, 2026.
    Differs: see :class:`Config`.
    """
    config = configure(dict.fromkeys(PROFILES, Config()), config, "mine", profile)
    return Defense(lambda key, view, hyper: Defended(view.variables), Hyper(), frozenset({"clean"}), config)
'''

TABLES = {"attacks": ATTACKS, "defenses": DEFENSES, "models": MODELS, "datasets": DATASETS}


def told(capsys, *words):
    capsys.readouterr()
    assert cli.main(["ls", *map(str, words)]) == 0
    return capsys.readouterr().out


def entry(capsys, *words):
    return json.loads(told(capsys, *words, "--json"))


def by_name(rows):
    return {row.pop("name"): row for row in (dict(row) for row in rows)}


def test_a_defense_shows_settings_and_hyper_parameters_in_both_profiles(capsys):
    found = entry(capsys, "defenses", "fp")
    settings, hyper = by_name(found["settings"]), by_name(found["hyper"])
    assert settings["epochs"] == {"comment": "of the tuning after pruning", "corrected": 100, "reference": 100}
    assert (settings["off_by_one"]["corrected"], settings["off_by_one"]["reference"]) == (False, True)
    assert hyper["lr"]["corrected"] == 0.01 and "relative change of the validation accuracy" in hyper["tolerance"]["comment"]
    assert found["needs"] == ["clean"] and found["validation"] and "RAID 2018" in found["paper"]
    assert found["differs"].startswith("as in the survey") and found["differs"].endswith("has those.")
    text = told(capsys, "defenses", "fp")
    for part in ("clean images (--spc)", "held back for validation", "--config fp.NAME=VALUE", "--hyper fp.NAME=V1,V2"):
        assert part in text
    assert re.search(r"^  off_by_one +false +true +level k >= 1 prunes k step - 1 inputs instead of k step$", text, re.M)


def test_a_default_that_a_data_set_changes_is_told_beside_it(capsys):
    found = entry(capsys, "defenses", "npd")
    reference = {"signed": False, "plug_train": True}
    assert found["elsewhere"]["tiny_imagenet"] == {"corrected": {"plug_train": True}, "reference": reference}
    assert "cifar10" not in found["elsewhere"]
    assert re.search(r"^  tiny_imagenet +corrected +plug_train=true$", told(capsys, "defenses", "npd"), re.M)


def test_a_profile_that_a_method_lacks_is_told_with_the_reason(capsys):
    found = entry(capsys, "defenses", "nc")
    assert "reference" not in by_name(found["settings"])["patience"] and "reference" in found["missing"]
    assert re.search(r"^no reference +\S+", told(capsys, "defenses", "nc"), re.M)


def test_an_attack_shows_its_training_too(capsys):
    found = entry(capsys, "attacks", "input_aware")
    assert found["poisons"] == "inside the batch" and len(found["needs"]) == 2
    assert by_name(found["settings"])["double_tanh"]["reference"] is True
    training = by_name(found["training"])
    assert training["epochs"]["corrected"] == 75 and "prepare_per" not in training  # part of how it works
    assert "--config input_aware.recipe.NAME=VALUE" in told(capsys, "attacks", "input_aware")


def test_a_model_and_a_data_set(capsys):
    found = entry(capsys, "models", "cnn")
    assert found["parameters"] == 24_346 and by_name(found["settings"])["width"]["default"] == 16
    assert "24,346 parameters" in told(capsys, "models", "cnn") and "--depth" not in told(capsys, "models", "cnn")
    found = entry(capsys, "datasets", "gtsrb")
    assert (found["image"], found["classes"], found["train_images"]) == ("32x32x3", 43, 39_209)
    assert "The German Traffic Sign Recognition Benchmark" in found["paper"] and "2011" in found["paper"]
    text = told(capsys, "datasets", "gtsrb")
    assert "43: limit 20 km/h," in text and "… (43 in all)" in text and "with --download" in text


def test_a_method_of_the_users_own(capsys, tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN)
    found = entry(capsys, "defenses", f"{tmp_path / 'own.py'}:mine")
    assert by_name(found["settings"]) == {"bias": {"comment": "a pruned channel loses it", "corrected": True, "reference": True}}
    assert by_name(found["hyper"])["factor"] == {"comment": "times the median", "corrected": 0.3, "reference": 0.3}
    assert (found["does"], found["paper"], found["differs"]) == ("Do nothing.", "nobody, 2026.", "see Config.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["defenses", "fpp"], "Did you mean 'fp'?"),
        (["attacks", "badnet"], "Did you mean 'badnets'?"),
        (["models", "preactresnet"], "Did you mean 'preactresnet18'?"),
        (["datasets", "gtrsb"], "Did you mean 'gtsrb'?"),
        (["defenses", "nowhere.py:mine"], "does not exist"),
    ],
)
def test_an_unknown_name_is_one_line(capsys, words, message):
    assert message in refused(capsys, "ls", *words)


@pytest.mark.slow  # builds every method in both profiles for every data set
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TABLES.items() for name in names])
def test_every_name_is_shown(capsys, kind, name):
    found, text = entry(capsys, kind, name), told(capsys, kind, name)
    assert found["name"] == name and found["paper"] and len(text.splitlines()) >= 5
    for row in [*found.get("settings", ()), *found.get("hyper", ()), *found.get("training", ())]:
        assert re.search(rf"^  {row['name']}  ", text, re.M)


@pytest.fixture
def terminal(capsys, monkeypatch):
    """A terminal of 72 characters."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    for name, value in {"COLUMNS": "72", "LINES": "40", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("words", ["attacks", "defenses", "models", "datasets", "defenses clp", "datasets mnist"])
def test_on_a_terminal_a_table_fits_its_width(capsys, terminal, words):
    text = re.sub(r"\x1b\[[\d;]*m", "", told(capsys, *words.split()))
    assert max(map(len, text.splitlines())) <= 72 and "…" not in text
    if words == "defenses":
        assert set(DEFENSES) <= {line.split(" ")[0] for line in text.splitlines()} and '"Fine-Pruning:' in text.split()


@pytest.mark.parametrize("words", [["defenses"], ["defenses", "clp"]])
def test_in_a_pipe_a_row_is_one_line_whatever_the_environment_says(capsys, monkeypatch, words):
    plain = told(capsys, *words)
    assert "\x1b" not in plain and all(line == line.rstrip() for line in plain.splitlines())
    if words == ["defenses"]:
        assert len(plain.splitlines()) == len(DEFENSES) + 1 and max(map(len, plain.splitlines())) > 150
    for name, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    assert told(capsys, *words) == plain


def test_a_network_of_a_file_is_shown_in_full(capsys, tmp_path):
    path = written(tmp_path, "tiny") / "tiny.py"
    text = told(capsys, "models", f"{path}:tiny")
    assert "2 convolutions, 2 norms" in text and re.search(r"^  width  ", text, re.M)
