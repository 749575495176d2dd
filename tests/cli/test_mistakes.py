"""Words in the wrong place are one line that says what to write: flags, the file of a grid, settings and hyper-parameters."""

import re
import shlex
from pathlib import Path

import pytest

import bdjax
from bdjax.cli import grids, mistakes, values
from bdjax.cli import main as cli
from bdjax.sweep import check, estimate
from tests.sweep.small import refused

FILE = (
    "import dataclasses\nfrom bdjax.sweep.grid import Grid\n"
    "grid = Grid(attack=('badnets', 'blended'), defense=('clp', 'ft'), seeds=(0, 1), width=4)\n"
    "small = dataclasses.replace(grid, seeds=(0,), train_images=100)\n"
)


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "rum": "unknown command 'rum'; allowed: quickstart, run,",
        "run --datset digits": "unknown flag '--datset' of bdjax run; bdjax run --help lists them. Did you mean '--dataset'?",
        "check --poison-ration=0.1": "Did you mean '--poison-ratio'?",
        "run --watch": "It is a flag of bdjax status.",
        "run --limit-cells 3": "It is a flag of bdjax sweep, bdjax plan and bdjax check.",
        "run --lr 0.1": "It is a field of the training: --config recipe.lr=VALUE.",
        "status results --lr 0.1": "bdjax status --help lists them.",
        "run --seeds 0 --seeds=1": "--seeds is given 2 times",
        "show_attack badnets --sed 3": "unknown flag '--sed' of bdjax show-attack; bdjax show-attack --help lists them. Did",
        "run grid.py --seeds 0": "run takes no file, sweep does: bdjax sweep grid.py --seeds 0",
        "--tyro-print-completion": "unknown shell ''; allowed: bash, zsh",
        "--tyro-print-completion bsh": "Did you mean 'bash'?",
    }.items(),
)
def test_an_unknown_word_is_one_line_with_the_right_one(capsys, line, message):
    assert message in refused(capsys, *line.split())


def test_what_stands_behind_two_dashes_is_no_flag(capsys):
    assert "no folder of results" in refused(capsys, "reproduce", "--", "--nothing")


@pytest.mark.parametrize("name", ["sweep", "plan", "check"])
@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--file", "a b.py", "--seeds", "0"], "'a b.py' --seeds 0"),
        (["--seeds", "0", "--file=grid.py"], "grid.py --seeds 0"),
        (["--file"], "FILE"),
        (["--only", "attack=badnets", "a b.py"], "'a b.py' --only attack=badnets"),
        (["--no-tuned", "--defense", "clp", "grid.py"], "grid.py --no-tuned --defense clp"),
    ],
)
def test_a_file_in_the_old_place_is_one_line_with_the_right_command(capsys, name, words, right):
    line = refused(capsys, name, *words)
    assert line.endswith(f"the file comes right after the command: bdjax {name} {right}")
    assert ("grid.py:FACTORY" in line) == ("--defense" in words)


def test_a_file_after_a_flag_without_values_is_read(tmp_path, capsys):
    assert "does not exist" in refused(capsys, "plan", "--no-tune", str(tmp_path / "nothing.py"))


@pytest.fixture
def asked(monkeypatch):
    """What each of the three commands would run: the grid, and which cells of it."""
    seen = []

    def keep(grid, *_, only=None, limit=None, **__):
        seen.append((grid, only, limit))
        raise StopIteration

    monkeypatch.setattr(grids, "_run", keep)
    monkeypatch.setattr(check, "validate", keep)
    monkeypatch.setattr(estimate, "overview", keep)

    def asked(*words):
        seen.clear()
        assert cli.main(list(map(str, words))) == 70
        return seen[0]

    return asked


@pytest.mark.parametrize("name", ["sweep", "plan", "check"])
def test_the_three_commands_take_a_file_or_none_in_the_same_way(tmp_path, asked, capsys, name):
    file = tmp_path / "grid.py"
    file.write_text(FILE)
    grid, only, limit = asked(name, file)
    assert (grid.attack, grid.seeds, only, limit) == (("badnets", "blended"), (0, 1), {}, None)
    cut = ["--scale", "small", "--seeds", "7", "8", "--only", "attack=blended", "--limit-cells", "3"]
    grid, only, limit = asked(name, file, *cut)
    assert (grid.train_images, grid.seeds, only, limit) == (100, (7, 8), {"attack": "blended"}, 3)
    grid, only, _ = asked(name, "--attack", "sig", "--only", "defense=clp")
    assert (grid.attack, grid.defense, only) == (("sig",), ("ft", "fp", "clp"), {"defense": "clp"})
    assert "name the file right after the command" in refused(capsys, name, "--scale", "small")
    assert "limit-cells 0 is not allowed" in refused(capsys, name, "--limit-cells", "0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--config ft.lr=0.01,0.1", "ft.lr is a population axis, not a setting: --hyper ft.lr=0.01,0.1"),
        ("--hyper ft.epochs=10,20", "ft.epochs is a setting, one for all members, and no population axis: --config ft.epochs=10"),
        ("--hyper badnets.size=4", "a setting, the same for all members: --config badnets.size=4"),
        ("--hyper recipe.lr=0.1", "a setting, the same for all members: --config recipe.lr=0.1"),
        ("--config badnets.lr=0.1", "lr is a field of the training, not of the attack badnets: --config badnets.recipe.lr=0.1"),
        ("--config badnets.learning_rate=0.1", "not of the attack badnets: --config badnets.recipe.lr=0.1"),
        ("--config ft.learning_rate=0.1", "ft.lr is a population axis, not a setting: --hyper ft.lr=0.1"),
        ("--config recipe.learning_rate=0.1", "Did you mean 'lr'?"),
        ("--seeds 0,1", "separate several values by spaces: --seeds 0 1; given '0,1'"),
        ("--poison-ratio=0,0.1", "separate several values by spaces: --poison-ratio 0 0.1"),
        ("--attack badnets,sig", "separate several values by spaces: --attack badnets sig"),
        ("--seeds one", "--seeds takes a whole number, or several separated by spaces: --seeds 0 1; given 'one'"),
        ("--epochs many", "--epochs takes a whole number; given 'many'"),
        ("--target square", "--target takes the number of a class, counted from 0; given 'square'"),
        ("--attack ft", "'ft' is a defense, not an attack: --defense ft"),
        ("--defense badnets", "'badnets' is an attack, not a defense: --attack badnets"),
        ("--model cifar10", "'cifar10' is a data set, not a model: --dataset cifar10"),
        ("--config ft.ephocs=3", "Did you mean 'epochs'?"),
        ("--config recipe.momentun=0", "Did you mean 'momentum'?"),
        ("--hyper ft.momentun=0", "Did you mean 'momentum'?"),
        ("--only atack=badnets", "Did you mean 'attack'?"),
        ("--only attack=badnet", "unknown attack of this grid 'badnet'; allowed: badnets. Did you mean 'badnets'?"),
        ("--only spc=7", "unknown spc of this grid '7'; allowed: 10."),
        ("--only seeds=0", "seeds is no axis of only, as a cell holds all its values: say with --seeds which of them run"),
        ("--only poison-ratio=0", "say with --poison-ratio which of them run"),
    ],
)
def test_a_name_in_the_wrong_flag_is_one_line_with_the_right_one(capsys, tmp_path, flags, message):
    assert message in refused(capsys, "check", "--width", "4", "--out", tmp_path / "out", *flags.split())


def test_what_a_line_says_instead_is_accepted(capsys, asked):
    line = "--hyper ft.lr=0.01,0.1 --config ft.epochs=10 badnets.size=4 recipe.lr=0.1 badnets.recipe.momentum=0.5"
    grid, *_ = asked("check", *line.split())
    assert grid.hyper == {"ft": {"lr": (0.01, 0.1)}} and grid.defense_config == {"ft": {"epochs": 10}}
    assert grid.recipe == {"lr": 0.1} and grid.attack_recipe == {"badnets": {"momentum": 0.5}}


# Commands that are printed.

FOLDER = "it's  here"


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["status", FOLDER], ["bdjax", "sweep", "FILE.py", "--out", FOLDER]),
        (["report", FOLDER], ["bdjax", "run", "--out", FOLDER]),
        (["reproduce", FOLDER], ["bdjax", "run", "--out", FOLDER]),
        (["cite", "empty one"], ["bdjax", "run", "--out", "empty one"]),
        (["report", "empty one"], ["bdjax", "run", "--out", "empty one"]),
        (["run", "--imported", FOLDER], ["bdjax", "import-torch", "FILE", "--out", FOLDER]),
    ],
)
def test_a_command_that_is_printed_can_be_pasted(capsys, tmp_path, monkeypatch, words, printed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty one" / "records").mkdir(parents=True)
    *command, folder = shlex.split(refused(capsys, *words).partition("with: ")[2])
    assert (command, Path(folder).name) == (printed[:-1], printed[-1])


def test_no_text_puts_a_value_into_a_command_without_quotes():
    """Commands with values are made by bdjax.errors.command; a text that has one in braces would not be quoted."""
    names = "|".join(cli.COMMANDS)
    for path in Path(bdjax.__file__).parent.rglob("*.py"):
        found = re.findall(rf"""f["'][^"'\n]*\bbdjax (?:{names})\b[^"'\n;]*\{{[^"'\n]*""", path.read_text())
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("shrink.py", "defense 'shrink.py' is a file: name the factory in it too, as in shrink.py:shrink"),
        ("shrink", "One of your own is written path/to/file.py:factory."),
    ],
)
def test_a_file_without_its_factory_says_how_it_is_written(capsys, given, said):
    assert said in refused(capsys, "check", "--defense", given, "--dataset", "digits")


@pytest.mark.parametrize("flag", ["--model", "--attack", "--defense"])
def test_a_file_without_its_factory_names_what_it_defines(capsys, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit\ndef _part(): ...\ndef thing(spec): ...\n")
    kind = flag.removeprefix("--")
    said = refused(capsys, "check", flag, "mine.py")
    assert f"{kind} 'mine.py' is a file: name the factory in it too, as in mine.py:thing; it defines thing" in said


def test_a_folder_that_is_not_there_names_the_one_beside_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "results-a"):
        (tmp_path / name).mkdir()
    said = refused(capsys, "report", "result-a")
    assert "result-a does not exist, so it is no folder of records. Did you mean 'results-a'? Quickstart, run and sweep" in said
    assert "dataset 'shape' is no built-in data set and no folder. Did you mean the folder 'shapes'?" in refused(
        capsys, "check", "--dataset", "shape"
    )
    assert "Did you mean 'cifar10'?" in refused(capsys, "check", "--dataset", "cifar01")


def test_numbers_and_names_that_are_right_are_let_through():
    known = mistakes.flags(cli.COMMANDS["run"])
    line = "--seeds 0 1 --poison-ratio 1e-1 0 --epochs=5 --attack a,b.py:c --data-dir x,y --no-tuned"
    values.look(line.split(), known)
