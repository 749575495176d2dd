"""Methods of the user's own that cannot run are refused before anything is trained, in one line with file, line and remedy."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.sweep import expand, run, trace
from bdjax.sweep.grid import Grid
from bdjax.sweep.ready import Ready
from bdjax.types import Dataset, Split
from tests.sweep.plugin_files import HEAD, attack, defense
from tests.sweep.small import refused

GRID = Grid(width=4, spc=(2,), poison_ratio=(0.1,), epochs=1, batch=25)
ARGUMENTS = ["--dataset", "digits", "--model", "cnn", "--width", "4", "--poison-ratio", "0.1", "--spc", "2", "--epochs", "1"]
FACTORY = 'def mine(model, config=None, *, profile="corrected"):\n'


@pytest.fixture(scope="module")
def dataset():
    """The facts of the digits and their shapes; no image is read where nothing is computed."""
    from bdjax.data import spec

    def split(rows):
        return Split(np.zeros((rows, 16, 16, 3), np.uint8), (np.arange(rows) % 10).astype(np.int32))

    return Dataset(spec("digits"), split(100), split(20), "digest")


def look(dataset, **fields):
    for branch in expand.cells(dataclasses.replace(GRID, **fields)):
        Ready().look(branch, dataset)


def complaint(tmp_path, dataset, text, kind="defense"):
    """What is said of a file with a method called ``mine``."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    axes = {"defense": (f"{file}:mine",)} if kind == "defense" else {"attack": (f"{file}:mine",), "defense": ()}
    with pytest.raises(UserError) as caught:
        look(dataset, **axes)
    told = str(caught.value)
    assert "\n" not in told and str(file) in told
    return told.replace(str(file), "mine.py")


PARAMS = "view.variables['params']"
STATIC = "Defended({**view.variables, 'params': new})"
WRONG = {
    "a Python if": (defense("if hyper.factor > 0:", "    pass"), r"mine\.py, line 14: .*a Python `if`.*use jnp\.where"),
    "a Python while": (defense("while hyper.factor > 0:", "    pass"), r"line 14: .*`while`.*jax\.lax\.while_loop"),
    "and": (defense("x = hyper.factor > 0 and 1"), r"line 14: .*`and`"),
    "float": (defense("x = float(hyper.factor)"), r"line 14: .*float\(\), int\(\).*keep it an array"),
    "item": (defense("x = hyper.factor.item()"), r"line 14: .*\.item\(\)"),
    "NumPy": (defense("x = np.asarray(hyper.factor)"), r"line 14: .*NumPy was given.*use jax\.numpy"),
    "NumPy's functions": (defense("x = np.exp(view.variables['params']['conv1']['kernel'])"), "line 14: .*use jax.numpy"),
    "range": (defense("for _ in range(hyper.factor.astype(int)):", "    pass"), r"line 14: .*as a Python integer"),
    "a mask as index": (defense("x = jnp.ones(3)", "x = x[x > hyper.factor]"), r"line 15: .*jnp\.where\(mask, x, 0\)"),
    "nonzero": (defense("jnp.nonzero(hyper.factor * jnp.ones(3))"), "line 14: .*jnp.nonzero"),
    "KeyError": (defense("view.variables['parms']"), r"line 14: mine fails: KeyError: 'parms'"),
    "TypeError": (defense("1 + 'a'"), "line 14: mine fails: TypeError: unsupported operand"),
    "its own error": (defense("raise RuntimeError('no idea')"), "line 14: mine fails: RuntimeError: no idea"),
    "an exit": (defense("raise SystemExit(0)"), "line 14: mine fails: it ends the program"),
    "unnamed clean": (
        defense("jnp.sum(view.clean.images)"),
        r"line 14: .*reads view\.clean, which is None.*needs=frozenset\(\{'clean'\}\)",
    ),
    "unnamed triggered": (
        defense("jnp.sum(view.triggered)", needs="'clean'"),
        r"line 14: .*reads view\.triggered.*frozenset\(\{'clean', 'triggered'\}\)",
    ),
    "unnamed accuracy": (defense("view.test_accuracy + 1"), r"reads view\.test_accuracy"),
    "unknown needs": (defense(needs="'cleen'"), "needs names 'cleen'; allowed: a frozenset of clean, test_accuracy"),
    "needs as a text": (
        HEAD + FACTORY + "    return Defense(lambda k, v, h: Defended(v.variables), (), 'clean')\n",
        "needs is a str and has to be a frozenset of clean",
    ),
    "no defend": (HEAD + FACTORY + "    return Defense(None, (), frozenset())\n", "defend has to be a function and is nothing"),
    "a text as hyper-parameter": (defense().replace("np.float32(2)", "'2'"), "numbers, and factor is a str"),
    "another error than that of what is not named": (
        defense("view.triggered is None", "view.variables['parms']"),
        "line 15: mine fails: KeyError: 'parms'$",
    ),
    "another type": (defense(result="view.variables"), r"line 13: mine returns a dict; a defense returns bdjax\.types.Defended"),
    "nothing": (defense(result="None"), "line 13: mine returns nothing"),
    "a tuple": (defense(result="(view.variables, None)"), "mine returns a tuple"),
    "another tree": (defense(result=f"Defended({PARAMS})"), "batch_stats/bn1/mean is missing"),
    "no dict": (defense(result="Defended(jnp.ones(3))"), r"the variables that mine returns are"),
    "a collection too many": (
        defense(result="Defended({**view.variables, 'seen': jnp.ones(3)})"),
        "with seen that does not belong",
    ),
    "another dtype": (
        defense(
            f"half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {PARAMS})",
            result="Defended({**view.variables, 'params': half})",
        ),
        r"bfloat16\[4\] at params/bn1/bias; it has to be float32\[4\]",
    ),
    "another shape": (
        defense(f"new = jax.tree.map(lambda x: x[:1], {PARAMS})", result=STATIC),
        r"float32\[1\] at params/bn1/bias; it has to be float32\[4\]",
    ),
    "no arrays": (defense(result="Defended({**view.variables, 'batch_stats': 'x'})"), "returns something that holds no arrays"),
    "a plug that does not fit": (
        defense(result="Defended({**view.variables, 'plug': {'kernel': jnp.ones(3)}})"),
        "the network cannot run with the plug that mine returns",
    ),
    "masks of two axes": (defense(result="Defended(view.variables, {'bn1': jnp.ones((2, 2))})"), "masks that mine returns"),
    "a trace without names": (defense(result="Defended(view.variables, None, [jnp.ones(2)])"), "it is a NamedTuple of arrays"),
    "a syntax error": ("def mine(:\n", "mine.py, line 1: defense file .* fails when imported: SyntaxError"),
    "a missing import": ("import os\nimport nothing_such\n", "mine.py, line 2: .*ModuleNotFoundError: .*'nothing_such'"),
    "a file that exits": ("import sys\nsys.exit(0)\n", "mine.py, line 2: .*it ends the program"),
    "no profile": (
        HEAD + "def mine(model, config=None):\n    pass\n",
        r"'profile'; write def mine\(model, config=None, \*, prof",
    ),
    "no config": (HEAD + "def mine(model, *, profile):\n    pass\n", r"write def mine\(model, config=None"),
    "a factory of nothing": (
        HEAD + FACTORY + "    pass\n",
        "line 12: mine is no defense: it returns nothing.*Defense",
    ),
    "a factory that fails": (HEAD + FACTORY + "    return model.nope\n", "line 13: mine fails: AttributeError: .*'nope'"),
    "an attack": (
        HEAD + "from bdjax.attacks.badnets.badnets import badnets\n" + FACTORY + "    return badnets(model.spec)\n",
        "it returns an Attack; name it with --attack",
    ),
    "hyper-parameters without names": (
        HEAD + FACTORY + "    return Defense(lambda k, v, h: Defended(v.variables), {'lr': 1.0}, frozenset())\n",
        "Defense.hyper of .* is a dict; it must be a NamedTuple",
    ),
    "a configuration that is not plain": (
        HEAD + FACTORY + "    return Defense(lambda k, v, h: Defended(v.variables), (), frozenset(), len)\n",
        "a configuration is part of every record and holds plain values alone",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_defense_that_cannot_run_is_refused_with_its_place_and_the_remedy(tmp_path, dataset, case):
    text, message = WRONG[case]
    told = complaint(tmp_path, dataset, text)
    assert re.search(message, told), told


ATTACKS = {
    "a Python if": (
        {"stamp": "lambda trigger, key, images: images if images.sum() > 0 else images"},
        r"line 16: .*a Python `if`",
    ),
    "images of another dtype": (
        {"stamp": "lambda trigger, key, images: images.astype(jnp.bfloat16)"},
        r"stamp returns bfloat16\[25, 16, 16, 3\]; it has to be float32\[25, 16, 16, 3\]",
    ),
    "images of another shape": (
        {"train_stamp": "lambda trigger, key, images: images[:, 1:]"},
        r"train_stamp returns float32\[25, 15",
    ),
    "labels as numbers": (
        {"relabel": "lambda labels: labels.astype(jnp.float32)"},
        r"relabel returns float32\[25\]; it has to be int32\[25\]",
    ),
    "a selection of indices": (
        {"select": "lambda key, labels, count: (jnp.arange(5), True)"},
        r"select returns int32\[5\]; it has to be bool\[100\]",
    ),
    "a selection alone": (
        {"select": "lambda key, labels, count: labels == 0"},
        "select returns bool.*; it has to return 2 values",
    ),
    "a trigger that grows": (
        {
            "init": "lambda key, assets: {'a': jnp.ones(2)}",
            "batch": "lambda t, k, x, y, r, other: (x, y, jnp.float32(0), {**t, 'b': jnp.ones(3)})",
        },
        "batch returns a dict, with b that does not belong there",
    ),
    "three values for four": (
        {"batch": "lambda t, k, x, y, r, other: (x, y, jnp.float32(0))"},
        "batch returns 3 values; it has to return 4 values",
    ),
    "a loss per row": (
        {"batch": "lambda t, k, x, y, r, other: (x, y, jnp.zeros(len(y)), t)"},
        r"batch returns float32\[25\]; it has to be float32\[\]",
    ),
    "the second batch, not asked for": (
        {"batch": "lambda t, k, x, y, r, other: (x, y, other[0].sum(), t)"},
        "mine fails: TypeError: 'NoneType' object is not subscriptable",
    ),
    "an update that changes a shape": (
        {
            "init": "lambda key, assets: {'a': jnp.ones(2)}",
            "batch": "lambda t, k, x, y, r, other: (x, y, t['a'].sum(), t)",
            "update": "lambda t, g: {'a': t['a'].sum()}",
        },
        r"update returns float32\[\] at a; it has to be float32\[2\]",
    ),
    "a preparation that does not trace": (
        {
            "prepare": "lambda key, dataset: {'images': np.asarray(dataset.train.images)}",
            "recipe": "Recipe(epochs=1, prepare_per='seed')",
        },
        "use jax.numpy",
    ),
    "an unknown schedule": ({"recipe": "Recipe(schedule='cosin')"}, "unknown schedule in the recipe of .* 'cosin'.*'cosine'"),
    "a trigger that is a text": ({"init": "lambda key, assets: 'red'"}, "init returns something that holds no arrays"),
    "no stamp": ({"stamp": "None"}, "stamp has to be a function and is nothing"),
    "no recipe": ({"recipe": "{'epochs': 1}"}, "recipe is a dict and no bdjax.types.Recipe"),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_an_attack_that_cannot_run_is_refused_with_its_place_and_the_remedy(tmp_path, dataset, case):
    hooks, message = ATTACKS[case]
    assert re.search(message, told := complaint(tmp_path, dataset, attack(**hooks), "attack")), told


def test_methods_that_can_run_are_accepted(tmp_path, dataset):
    (tmp_path / "a.py").write_text(attack("a", prepare="lambda key, dataset: {'x': jnp.ones(2)}"))
    every = "'clean', 'triggered', 'test_accuracy'"
    (tmp_path / "d.py").write_text(
        defense("x = view.triggered.sum() + view.test_accuracy.astype(jnp.uint32)", needs=every, name="d")
    )
    (tmp_path / "j.py").write_text(defense(name="j").replace("    def defend", "    @jax.jit\n    def defend"))
    look(dataset, attack=(f"{tmp_path}/a.py:a", "badnets"), defense=(f"{tmp_path}/d.py:d", f"{tmp_path}/j.py:j"))


def test_check_and_run_refuse_a_defense_before_anything_is_trained_and_without_a_traceback(tmp_path, capsys, own_cache):
    file, out = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(defense("if hyper.factor > 0:", "    pass"))
    arguments = [*ARGUMENTS, "--defense", f"{file}:mine", "--out", out]
    first, second = refused(capsys, "check", *arguments), refused(capsys, "run", *arguments)
    assert first == second and f"{file}, line 14" in first
    assert not (out / "records").exists() and not (out / "models").exists()


def test_a_user_error_of_a_plugin_keeps_what_caused_it(tmp_path, dataset):
    file = tmp_path / "mine.py"
    file.write_text(defense("view.variables['parms']"))
    with pytest.raises(UserError) as caught:
        look(dataset, defense=(f"{file}:mine",))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("recipe.schedule=cosin", "unknown schedule in the recipe of badnets 'cosin'.*Did you mean 'cosine'"),
        ("recipe.lr=fast", "recipe of badnets.lr takes float; given 'fast'"),
        ("recipe.lr=-1", "lr in the recipe of badnets must be at least 0; given -1"),
        ("badnets.recipe.epochs=0", "epochs in the recipe of badnets must be at least 1; given 0"),
        ("badnets.recipe.batch=0", "batch in the recipe of badnets must be at least 1; given 0"),
        ("recipe.augment=befor", "unknown augment in the recipe of badnets 'befor'"),
    ],
)
def test_check_refuses_a_recipe_that_no_training_can_follow(capsys, tmp_path, config, message):
    told = refused(capsys, "check", *ARGUMENTS[:-2], "--defense", "none", "--config", config, "--out", tmp_path)
    assert re.search(message, told), told


def test_check_refuses_a_batch_without_room_for_the_poison(dataset):
    with pytest.raises(UserError, match=r"wanet\.max_ratio 0\.5 is too large for batches of 25"):
        look(dataset, attack=("wanet",), attack_config={"wanet": {"max_ratio": 0.5}}, defense=())
    with pytest.raises(UserError, match="input_aware triggers one image and gives another a foreign pattern"):
        look(dataset, attack=("input_aware",), batch=1, defense=())


def test_check_refuses_a_cache_that_cannot_keep_what_an_attack_prepares(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to the cache folder"):
        look(dataset, attack=("ssba",), defense=())


def test_the_methods_of_the_package_are_traced_only_where_the_cell_decides(dataset, monkeypatch):
    traced = []
    monkeypatch.setattr(jax, "eval_shape", lambda *a, **k: traced.append(a))
    branch = expand.cells(dataclasses.replace(GRID, defense=("ft", "fp")))[0]
    trace.attack(branch.train, branch.attack, dataset)
    for cell, made in zip(branch.defenses, branch.built, strict=True):
        trace.defense(cell, made, branch.model, dataset)
    assert traced == []


@pytest.mark.slow
def test_a_finished_sweep_is_not_traced_again(monkeypatch, population):
    looked = []
    monkeypatch.setattr(run.Ready, "look", lambda *a: looked.append(a))
    from tests.sweep.small import GRID as DONE
    from tests.sweep.small import go

    go(DONE, population[0])
    assert looked == []


@pytest.mark.parametrize("flag", ["--hyper", "--config", "--only"])
def test_a_users_method_is_named_by_its_factory(tmp_path, flag, capsys, own_cache):
    from bdjax.cli.flags import Scenario
    from bdjax.cli.scenario import grid_of

    file = tmp_path / "loud.py"
    file.write_text(defense(name="loud"))
    name = f"{file}:loud"
    if flag == "--only":
        branches = expand.cells(dataclasses.replace(GRID, defense=("clp", name)))
        (branch,) = expand.select(branches, {"defense": "loud"})
        assert [cell.defense for cell in branch.defenses] == [name]
        return
    given = {flag.removeprefix("--"): ("loud.factor=3,4,5",)}
    grid = grid_of(Scenario(defense=(name, "ft"), **given))
    assert grid.hyper == ({name: {"factor": (3.0, 4.0, 5.0)}} if flag == "--hyper" else {})
    assert grid.defense_config == ({} if flag == "--hyper" else {name: {"factor": "3,4,5"}})
    with pytest.raises(UserError, match="unknown method of"):
        grid_of(Scenario(defense=(name,), **{flag.removeprefix("--"): ("lout.factor=3",)}))


def test_two_users_methods_of_one_name_are_told_apart(tmp_path):
    from bdjax.cli.flags import Scenario
    from bdjax.cli.scenario import grid_of

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "loud.py").write_text(defense(name="loud"))
    names = tuple(f"{tmp_path / folder}/loud.py:loud" for folder in ("a", "b"))
    with pytest.raises(UserError, match=r"--hyper 'loud' may be .*a/loud\.py:loud or .*b/loud\.py:loud: write it with its file"):
        grid_of(Scenario(defense=names, hyper=("loud.factor=3",)))
    grid = grid_of(Scenario(defense=names, hyper=(f"{names[0]}.factor=3",)))
    assert grid.hyper == {names[0]: {"factor": (3.0,)}}
    own = grid_of(Scenario(attack=names[0], defense=("ft",), config=("loud.recipe.epochs=3", "loud.target=1")))
    assert own.attack_recipe == {names[0]: {"epochs": 3}} and own.attack_config == {names[0]: {"target": 1}}


def test_a_users_attack_is_refused_by_plan_in_one_line(tmp_path, capsys, own_cache):
    file = tmp_path / "mine.py"
    file.write_text(attack(relabel="lambda labels: labels['a']"))
    told = refused(capsys, "plan", *ARGUMENTS, "--attack", f"{file}:mine", "--defense", "none", "--no-tune")
    assert f"{file}, line 16: mine fails: " in told


@pytest.mark.parametrize("field", ["strength", "target"])
def test_a_setting_that_the_returned_configuration_lacks_is_refused(tmp_path, dataset, field):
    """Else its values would share a cell: the second would be answered with the records of the first."""
    (tmp_path / "faint.py").write_text(
        "from bdjax.attacks.selection import all_to_one, any_class\nfrom bdjax.types import Attack, Recipe\n\n"
        "def faint(spec, config=None, *, profile='corrected'):\n"
        "    return Attack(lambda k, a: {}, any_class, lambda t, k, images: images, all_to_one(0), Recipe())\n"
    )
    name = f"{tmp_path}/faint.py:faint"
    with pytest.raises(UserError, match=rf"faint\.py, line 4: faint is given '{field}', and .* has no such field"):
        look(dataset, attack=(name,), defense=(), attack_config={name: {field: 1}})


def test_the_console_names_no_traceback_either_way(tmp_path, capsys, own_cache):
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_this_name\n")
    for command in ("check", "run"):
        assert cli.main([command, *ARGUMENTS, "--defense", f"{file}:mine", "--out", str(tmp_path / "out")]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_the_settings_of_a_grids_file_may_name_a_users_method_by_its_factory_too(tmp_path):
    from bdjax.cli.flags import Scenario
    from bdjax.cli.scenario import grid_of

    file = tmp_path / "loud.py"
    file.write_text(defense(name="loud"))
    name = f"{file}:loud"
    base = dataclasses.replace(GRID, defense=(name, "ft"), hyper={"loud": {"factor": (3.0,)}, "ft": {"lr": (0.1,)}})
    assert grid_of(Scenario(), base).hyper == {name: {"factor": (3.0,)}, "ft": {"lr": (0.1,)}}
    assert grid_of(Scenario(defense=("ft",)), base).hyper == {"ft": {"lr": (0.1,)}}  # what was taken out goes with its settings
    with pytest.raises(UserError, match="unknown method of hyper 'lout'"):  # and what nobody is called is no setting of anything
        expand.cells(grid_of(Scenario(), dataclasses.replace(base, hyper={"lout": {"factor": (3.0,)}})))
