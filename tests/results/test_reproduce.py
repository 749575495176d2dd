"""A record runs again from its settings: the same numbers, close ones, or others and why."""

import dataclasses

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.results import member, reproduce
from bdjax.store import records
from tests.sweep.small import GRID, TOGETHER, go, images


def record(out, **facts):
    return member.record(out, facts)


def again(out, row, **options):
    return reproduce.again(out, row, images(), **options)


def test_a_repair_and_a_training_are_identical(population):
    out, _ = population
    defend = record(out, defense="clp", seed=1, ratio=0.1)
    found = again(out, defend)
    assert (found.verdict, found.differing, found.reasons) == ("identical", (), ())
    assert found.again["masks"] == defend["masks"] is not None
    assert again(out, record(out, seed=0, ratio=0.1)).verdict == "identical"


def test_a_repair_is_identical_from_the_first_weights_on(population):
    out, _ = population
    hyper = next(row["hyper"] for row in records.read_rows(out) if row["defense"] == "ft" and '"lr":0.1' in row["hyper"])
    assert again(out, record(out, defense="ft", seed=0, ratio=0.1, hyper=hyper), retrain=True).verdict == "identical"


def test_members_that_were_repaired_together_are_repaired_together_again(together):
    """Elsewhere float sums are made in another order: the record names the members it was run with."""
    found = again(together[0], record(together[0], defense="clp", seed=1, ratio=0.1))
    assert found.verdict == "identical" and found.again["members"] == 4


@pytest.mark.slow  # four members are trained in one program
def test_members_that_ran_together_run_together_again(tmp_path):
    grid = dataclasses.replace(GRID, defense=("clp",), hyper={}, defense_config={}, epochs=2)
    go(grid, tmp_path, execution=TOGETHER)
    found = again(tmp_path, record(tmp_path, seed=1, ratio=0.1))
    assert found.verdict == "identical" and found.again["members"] == 4


def test_other_numbers_are_told_with_what_changed(population):
    out, _ = population
    row = record(out, defense="clp", seed=1, ratio=0.1)
    other = {**row, "acc": row["acc"] - 0.02, "device": "another", "versions": '{"jax":"0.0.1"}', "git_commit": "f00"}
    found = reproduce.judge(other, row, 0.01)
    assert found.verdict == "different" and found.differing == ("acc",)
    text = "\n".join(reproduce.lines(found))
    assert "ACC:" in text and "jax: 0.0.1, now" in text and "device: another, now" in text and "git commit: f00, now" in text
    assert reproduce.judge(other, row, 0.02).verdict == "within tolerance"
    assert reproduce.judge({**other, "status": "non_finite", "acc": None}, row, 1.0).verdict == "different"
    same_place = reproduce.judge({**row, "asr": row["asr"] + 0.5}, row, 0.01)
    assert "nothing that the record tells" in "\n".join(reproduce.lines(same_place))


def test_what_cannot_be_run_again_is_one_clear_line(population, monkeypatch):
    out, _ = population
    row = record(out, defense="clp", seed=1, ratio=0.1)
    with pytest.raises(UserError, match="tolerance 2 is not allowed"):
        again(out, row, tolerance=2)
    with pytest.raises(UserError, match="not those of the record"):
        again(out, {**row, "data_digest": "0" * 64})
    changed = row["config"].replace('"schema":1', '"schema":0')
    with pytest.raises(UserError, match=r"mean something else here: schema: 0, now 1"):
        again(out, {**row, "config": changed})


def test_the_command_says_identical(population, capsys):
    out, _ = population
    arguments = ["reproduce", str(out), "--defense", "clp", "--seed", "1", "--poison-ratio", "0.1"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("identical\n")
    assert cli.main(arguments[:4]) == 2
    assert "match defense clp" in capsys.readouterr().err
