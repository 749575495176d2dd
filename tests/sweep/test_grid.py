"""Grids: what they mean, what they refuse, and which hash names a cell."""

import dataclasses
import math

import pytest

from bdjax.cli.flags import Scenario, grid_of, pairs
from bdjax.errors import UserError
from bdjax.sweep import build, expand
from bdjax.sweep.cell import Point, member_hash
from bdjax.sweep.grid import Grid

SMALL = Grid(width=4, epochs=2, train_images=100, test_images=50)


def changed(**fields):
    return dataclasses.replace(SMALL, **fields)


def test_a_training_cell_is_shared_by_all_its_defenses_and_a_data_free_one_serves_every_spc():
    branches = expand.cells(changed(attack=("badnets", "blended"), spc=(2, 10)))
    assert [branch.train.attack for branch in branches] == ["badnets", "blended"]
    cells = [(cell.defense, cell.spc) for cell in branches[0].defenses]
    assert cells == [("ft", 2), ("ft", 10), ("fp", 2), ("fp", 10), ("clp", None)]


def test_none_is_the_training_cell_itself():
    (branch,) = expand.cells(changed(defense=("none",)))
    assert branch.defenses == ()


def test_seeds_ratios_and_hyper_parameters_do_not_name_a_cell_but_everything_static_does():
    def name(**fields):
        return build.cell_hash(expand.cells(changed(**fields))[0].defenses[0], "digest")

    same = name()
    assert name(seeds=(4, 5)) == name(poison_ratio=(0.02,)) == name(hyper={"ft": {"lr": (0.1, 0.2)}}) == same
    static = [
        dict(width=8), dict(epochs=3), dict(batch=32), dict(root=1),
        dict(profile="reference", defense_config={"ft": {"epochs": 5}}), dict(target=1),
        dict(recipe={"lr": 0.1}), dict(spc=(2,)), dict(attack=("blended",)), dict(model=("preactresnet18",)),
        dict(attack_config={"badnets": {"target": 2}}), dict(defense_config={"ft": {"batch": 7}}),
    ]  # fmt: skip
    names = [name(**fields) for fields in static]
    assert same not in names and len(set(names)) == len(names)
    assert build.cell_hash(expand.cells(SMALL)[0].defenses[0], "other data") != same
    spelled_out = name(defense_config={"ft": {"epochs": 100}}, recipe={"lr": 0.01})
    assert spelled_out == same  # a default written down is the same experiment


def test_an_edited_file_of_the_users_own_is_another_cell(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from bdjax.defenses.clp import clp as mine\n")
    grid = changed(defense=(f"{file}:mine",))
    (cell,) = expand.cells(grid)[0].defenses
    before = build.cell_hash(cell, "digest")
    file.write_text("from bdjax.defenses.clp import clp as mine  # edited\n")
    assert build.cell_hash(cell, "digest") != before


def test_hyper_parameters_are_every_combination_and_the_same_number_has_one_name():
    model, _ = build.attacked(expand.cells(SMALL)[0].train)
    defense = build.defended(expand.cells(SMALL)[0].defenses[0], model)
    points = build.hyper_points(defense, {"lr": (0.1, 1), "momentum": (0, 0.5)}, "ft")
    assert [(p["lr"], p["momentum"]) for p in points] == [(0.1, 0.0), (0.1, 0.5), (1.0, 0.0), (1.0, 0.5)]
    (default,) = build.hyper_points(defense, {}, "ft")
    (written,) = build.hyper_points(defense, {"lr": (0.01,)}, "ft")
    assert member_hash(Point(0, 0.1, default)) == member_hash(Point(0, 0.1, written))
    stacked = build.stack_hyper(defense, [Point(0, 0.1, p) for p in points])
    assert type(stacked) is type(defense.hyper) and stacked.lr.shape == (4,) and stacked.lr.dtype == "float32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dataset=("didgits",)), "Did you mean 'digits'"),
        (dict(model=("cn",)), "Did you mean 'cnn'"),
        (dict(attack=("badnet",)), "Did you mean 'badnets'"),
        (dict(defense=("fpp",)), "Did you mean 'fp'"),
        (dict(profile="corect"), "Did you mean 'corrected'"),
        (dict(poison_ratio=(1.5,)), "poison ratio 1.5"),
        (dict(poison_ratio=(-0.1,)), "poison ratio -0.1"),
        (dict(poison_ratio=(math.nan,)), "poison ratio nan"),
        (dict(poison_ratio=(0.1, 0.1)), "twice"),
        (dict(seeds=(-1,)), "seed -1"),
        (dict(seeds=(0, 0)), "twice"),
        (dict(seeds=(2**32,)), "too large"),
        (dict(seeds=()), "empty"),
        (dict(spc=(0,)), "spc"),
        (dict(spc=()), "spc is empty"),
        (dict(width=0), "width 0"),
        (dict(epochs=-1), "epochs -1"),
        (dict(target=10), "given 10"),
        (dict(target=-1), "given -1"),
        (dict(attack_config={"badnets": {"tarket": 1}}), "Did you mean 'target'"),
        (dict(attack_config={"blended": {"target": 1}}), "method of attack_config 'blended'"),
        (dict(defense_config={"ft": {"epoch": 1}}), "Did you mean 'epochs'"),
        (dict(hyper={"ft": {"rl": (0.1,)}}), "Did you mean 'lr'"),
        (dict(hyper={"ft": {"lr": ()}}), "no value"),
        (dict(hyper={"ft": {"lr": ("x",)}}), "takes numbers"),
        (dict(hyper={"ft": {"lr": (math.nan,)}}), "takes numbers"),
        (dict(hyper={"ft": {"lr": (1e39,)}}), "takes numbers"),
        (dict(recipe={"learning": 0.1}), "recipe field"),
        (dict(recipe={"epochs": 3}), "field of the grid"),
        (dict(defense=("missing.py:mine",)), "does not exist"),
    ],
)
def test_mistakes_are_named_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        expand.cells(changed(**fields))
    assert "\n" not in str(error.value)


def test_a_ratio_above_what_a_batch_makes_room_for_says_how_to_raise_it():
    with pytest.raises(UserError, match=r"ratio 0\.2 is above the 0\.1 .*--config wanet\.max_ratio=0\.2"):
        expand.cells(changed(attack=("wanet",), poison_ratio=(0.2,)))
    assert expand.cells(changed(attack=("wanet",), poison_ratio=(0.2,), attack_config={"wanet": {"max_ratio": 0.2}}))


@pytest.mark.parametrize(
    ("attack", "recipe", "message"),
    [
        ("bpp", {"second_batch": False}, r"recipe\.second_batch is part of how bpp works"),
        ("wanet", {"augment": "none"}, "augmentation is a field of wanet"),
        ("badnets", {"augment": "own"}, "cannot be 'own'"),
    ],
)
def test_a_recipe_cannot_change_how_an_attack_works(attack, recipe, message):
    with pytest.raises(UserError, match=message):
        expand.cells(changed(attack=(attack,), recipe=recipe))


def test_an_attack_that_asks_for_the_architecture_is_told(tmp_path):
    cell = expand.cells(changed(attack=("low_frequency",)))[0].train
    assert build.attacked(cell)[1].config.architecture == cell.model


def test_files_of_the_users_own_are_refused_in_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="fails when imported: ModuleNotFoundError"):
        expand.cells(changed(defense=(f"{broken}:mine",)))
    fine = tmp_path / "fine.py"
    fine.write_text("def mine(model, config=None, *, profile):\n    pass\n")
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        expand.cells(changed(defense=(f"{fine}:mien",)))


def test_only_and_limit_cut_the_grid():
    branches = expand.cells(changed(attack=("badnets", "blended"), spc=(2, 10)))

    def count(only, limit=None):
        return [(b.train.attack, [(c.defense, c.spc) for c in b.defenses]) for b in expand.select(branches, only, limit)]

    assert count({"attack": "blended", "defense": "clp"}) == [("blended", [("clp", None)])]
    assert count({"attack": "badnets", "spc": "10"}) == [("badnets", [("ft", 10), ("fp", 10), ("clp", None)])]
    assert count({}, 3) == [("badnets", [("ft", 2), ("ft", 10)])]
    assert count({}, 7)[1] == ("blended", [])
    assert count({"defense": "none"}) == [("badnets", []), ("blended", [])]
    with pytest.raises(UserError, match="axis of only"):
        expand.select(branches, {"atack": "badnets"})
    with pytest.raises(UserError, match="no cell"):
        expand.select(branches, {"attack": "wanet"})


def test_flags_become_a_grid_and_replace_what_a_file_says():
    scenario = Scenario(
        defense=("ft", "fp"), poison_ratio=(0.0, 0.2), seeds=(3,), width=8,
        config=("fp.epochs=7", "badnets.target=2", "recipe.lr=0.5", "badnets.recipe.batch=9"), hyper=("ft.lr=0.1,0.01",),
    )  # fmt: skip
    grid = grid_of(scenario, SMALL)
    assert (grid.defense, grid.poison_ratio, grid.seeds, grid.width, grid.epochs) == (("ft", "fp"), (0.0, 0.2), (3,), 8, 2)
    assert grid.defense_config == {"fp": {"epochs": 7}} and grid.attack_config == {"badnets": {"target": 2}}
    assert (
        grid.recipe == {"lr": 0.5}
        and grid.attack_recipe == {"badnets": {"batch": 9}}
        and grid.hyper == {"ft": {"lr": (0.1, 0.01)}}
    )
    recipe = build.attacked(expand.cells(grid)[0].train)[1].recipe
    assert (recipe.lr, recipe.batch) == (0.5, 9)  # what is said of one attack wins
    fewer = grid_of(Scenario(defense=("clp",)), grid)  # what the file says of methods that no longer run goes with them
    assert fewer.defense_config == {} and fewer.hyper == {} and fewer.attack_config == grid.attack_config
    expand.cells(fewer)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (Scenario(config=("fp.epochs",)), "METHOD.FIELD=VALUE"),
        (Scenario(config=("badnet.target=1",)), "Did you mean 'badnets'"),
        (Scenario(defense=("ft",), config=("fp.epochs=1",)), "method of --config 'fp'"),
        (Scenario(hyper=("ft.lr=a",)), "takes numbers"),
        (Scenario(hyper=("anp.lr=1",)), "method of --hyper"),
    ],
)
def test_settings_that_name_nothing_are_refused(scenario, message):
    with pytest.raises(UserError, match=message):
        grid_of(scenario)


def test_only_is_given_as_pairs():
    assert pairs(["attack=badnets", "spc=2"], "--only") == {"attack": "badnets", "spc": "2"}
    for wrong in (["attack"], ["attack="], ["spc=1", "spc=2"]):
        with pytest.raises(UserError):
            pairs(wrong, "--only")
