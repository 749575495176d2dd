"""A ratio above 0 that poisons nothing is no attack: it is said, recorded as infeasible and never trained."""

import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.cli import main as cli
from bdjax.data import spec
from bdjax.errors import UserError
from bdjax.sweep import estimate, feasible, goal, plan_text
from bdjax.sweep.grid import Grid
from tests.sweep.small import DATA, EXECUTION, go

LABELS = np.arange(1000) % 10


def built(name, config=None, **recipe):
    attack = ATTACKS[name](spec("cifar10"), config)
    return attack._replace(recipe=attack.recipe._replace(**recipe))


@pytest.mark.parametrize(("ratio", "rows", "idle"), [
    (0.0, 1437, False), (0.0003, 1437, True), (0.00034, 1437, True), (0.00035, 1437, False), (0.1, 4, True), (0.2, 4, False),
    (1e-9, 50_000, True), (0.0005, 1000, True),  # half a row rounds to even
])  # fmt: skip
def test_a_ratio_that_rounds_to_no_row_poisons_nothing(ratio, rows, idle):
    reason = feasible.idle(built("badnets"), "badnets", ratio, rows)
    assert bool(reason) is idle
    if idle:
        assert f"badnets poisons no row at ratio {ratio:g}" in reason and "rounds to 0 rows" in reason and "\n" not in reason


@pytest.mark.parametrize("name", ["wanet", "bpp", "input_aware"])
@pytest.mark.parametrize(("ratio", "epochs", "idle"), [
    (0.0, 10, False), (1e-5, 10, True), (1e-4, 10, True), (1.2e-4, 10, False), (1e-5, 200, False), (0.1, 1, False),
])  # fmt: skip
def test_an_attack_in_the_batch_poisons_nothing_where_less_than_one_image_is_expected(name, ratio, epochs, idle):
    """7 batches of 128: 896 images an epoch."""
    reason = feasible.idle(built(name, epochs=epochs, batch=128), name, ratio, 1000)
    assert bool(reason) is idle and (not idle or "images are expected to carry the trigger" in reason)


def test_what_the_selection_leaves_empty_poisons_nothing_either():
    """One row of a thousand is a tenth of a row of the class."""
    sig = built("sig", {"clean_label_ratio": "class"})
    assert "its selection marks none of 1,000 training rows" in feasible.infeasible(sig, "sig", [0.001], LABELS)[0]


def test_each_ratio_is_judged_by_itself():
    found = feasible.infeasible(built("badnets"), "badnets", [0.0, 1e-4, 0.1, 1e-5], LABELS)
    assert [text.split(":")[0] for text in found] == [f"badnets poisons no row at ratio {ratio:g}" for ratio in (1e-4, 1e-5)]
    assert "cannot poison 500 rows" in feasible.infeasible(built("sig"), "sig", [0.5], LABELS)[0]


def test_a_selection_of_somebodys_own_that_fails_is_one_line():
    def broken(key, labels, count):
        raise ZeroDivisionError("never\nmind")

    with pytest.raises(UserError, match=r"^the selection of mine cannot be traced: never$"):
        feasible.infeasible(built("badnets")._replace(select=broken), "mine", [0.1], LABELS)


def test_a_plan_says_so_and_does_not_count_the_members():
    grid = Grid(dataset=("digits",), attack=("badnets", "wanet"), poison_ratio=(0.0, 0.0003, 0.1), seeds=(0, 1), epochs=1)
    found = estimate.overview(grid, measuring=estimate.Measuring(tune=False, memory=False))
    badnets, wanet = found.cells
    assert (badnets.members, len(badnets.infeasible), wanet.members, len(wanet.infeasible)) == (4, 1, 4, 1)
    assert found.members == 8 and {defend.members for defend in badnets.defenses} == {4}
    text = "\n".join(plan_text.lines(found))
    assert "infeasible, and not counted: badnets poisons no row at ratio 0.0003" in text and "target 0, 4 members" in text
    longer = estimate.overview(Grid(attack=("wanet",), poison_ratio=(0.0003,)), measuring=estimate.Measuring(False, memory=False))
    assert not longer.cells[0].infeasible  # one is expected over 100 epochs


def test_check_says_so(capsys, tmp_path, own_cache):
    flags = ["--attack", "badnets", "--poison-ratio", "0", "0.001", "0.1", "--defense", "clp", "--width", "4", "--target", "3"]
    assert cli.main(["check", *flags, *DATA, *EXECUTION, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum(line.startswith("infeasible: digits / cnn / badnets: badnets poisons no row at ratio 0.001") for line in lines) == 1
    )
    assert "ok: digits / cnn / badnets: target 3" in lines


@pytest.mark.slow  # trains
def test_a_run_records_it_and_trains_the_others(tmp_path):
    grid = Grid(defense=("clp",), poison_ratio=(0.0, 0.001, 0.1), width=4, epochs=1, batch=25, train_images=200, test_images=100)
    frame = go(grid, tmp_path)
    status = {(row["defense"], row["ratio"]): row["status"] for row in frame.iter_rows(named=True)}
    assert {key for key, told in status.items() if told == "infeasible"} == {("none", 0.001), ("clp", 0.001)}
    reasons = frame.filter(frame["status"] == "infeasible")["reason"].to_list()
    assert all("badnets poisons no row at ratio 0.001" in reason for reason in reasons)
    assert frame.filter(frame["ratio"] == 0.001)["acc"].null_count() == 2
    fine = frame.filter(frame["status"] == "ok")
    assert fine["classes"].to_list() == [10] * 4 and set(fine["target_class"]) == {"0"}
    assert all(0.1 <= share <= 1 for name in ("one_class", "one_class_before", "majority") for share in fine[name])


def test_the_goal_of_an_attack_is_told_in_words():
    facts = spec("cifar10")
    assert goal.in_words(built("badnets", {"target": 2}), 2, facts) == "target 2 (class 'bird')"
    assert goal.in_words(built("badnets", {"labels": "all_to_all"}), 0, facts) == "labels all_to_all"
    assert goal.target(built("badnets", {"labels": "all_to_all"}), 0) is None
    assert goal.target(built("sig"), 0) == 0 and goal.rule(built("sig").config) == "all_to_one"
    assert goal.in_words(built("badnets"), 0, spec("digits")) == "target 0"
    own = built("badnets")._replace(config=None)
    assert goal.in_words(own, 4, facts) == "target 4 (class 'deer')" and goal.rule(None) is None
