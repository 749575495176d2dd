"""The pruning curves of a folder of results: the level that a defense chose is the network of its record."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from bdjax import tree
from bdjax.cli.main import main
from bdjax.defenses.channels import LEVELS_OF_U
from bdjax.errors import UserError
from bdjax.results import curves, member
from bdjax.store import records
from tests.later import some_later
from tests.results.test_member import accuracy
from tests.sweep.small import GRID, go, images

U = 0.5  # prunes several channels of so small a network, and is a level of the curve


SETTINGS = {
    "anp": {"iterations": 8, "batch": 8},
    "rnp": {"unlearn_epochs": 1, "recover_epochs": 2, "batch": 8},
    "fp": {"epochs": 1, "batch": 8},
    "ft": {"epochs": 2},
}
HYPER = {"clp": {"u": (U,)}, "bnp": {"u": (U,)}, "anp": {"lr": (0.5,), "tolerance": (0.9,)}, "rnp": {"tolerance": (0.5,)}}


@pytest.fixture(scope="module")
def defended(population, tmp_path_factory):
    """``f(defense, ...) -> folder`` of the trained members, those of one seed defended by these defenses and maybe others."""
    folder = shutil.copytree(population[0], tmp_path_factory.mktemp("curves") / "out")
    for path in (folder / "records").rglob("*.parquet"):
        if records.read_file(path)[0]["defense"] != "none":
            path.unlink()

    def defended(*defenses):
        settings, hyper = ({name: of[name] for name in defenses if name in of} for of in (SETTINGS, HYPER))
        go(dataclasses.replace(GRID, defense=defenses, seeds=(0,), defense_config=settings, hyper=hyper), folder)
        return folder

    return defended


def rates(found, i, level):
    counts = found.counts
    return counts.correct[i, level] / counts.clean[i, level], counts.attacked[i, level] / counts.triggered[i, level]


@pytest.mark.parametrize("defense", some_later(["anp", "rnp", "bnp", "clp"], {"anp", "rnp", "bnp"}))
def test_the_chosen_level_is_the_network_of_the_record(defended, defense):
    out = defended(defense)
    (found,) = curves.measure(out, defense)
    assert [(row["seed"], row["ratio"]) for row in found.rows] == [(0, 0.0), (0, 0.1)]
    assert found.counts.correct.shape == (2, len(found.points))
    for i, row in enumerate(found.rows):
        trace = json.loads(row["trace"])
        level = trace["level"] if "level" in trace else LEVELS_OF_U.index(U)
        pruned = sum(len(layer["pruned"]) for layer in json.loads(row["masks"]).values())
        assert pruned > 0, "a curve on which nothing is pruned shows nothing"
        assert rates(found, i, level) == pytest.approx((row["acc"], row["asr"]), abs=1e-12)
        if "level" in trace:  # outliers are pruned at u = 6 too
            assert rates(found, i, 0) == pytest.approx((row["acc_before"], row["asr_before"]), abs=1e-12)
        assert len({rates(found, i, k) for k in range(len(found.points))}) > 1


@pytest.mark.slow
def test_fine_prunings_levels_are_networks_before_their_tuning(defended):
    out = defended("fp")
    (found,) = curves.measure(out, "fp")
    for i, row in enumerate(found.rows):
        found_member = member.load(out, row)
        rank, d = np.array(json.loads(row["trace"])["rank"]), 16
        assert sorted(rank) == list(range(d))
        assert rates(found, i, 0) == pytest.approx((row["acc_before"], row["asr_before"]), abs=1e-12)
        for level in (30, 60, 90):
            keep = jnp.asarray(rank >= np.ceil(round(found.points[level] * d, 9)), jnp.float32)
            params = tree.mask_inputs(found_member.variables["params"], {"linear": keep})
            pixels, labels = images().test
            expected = accuracy(found_member, {**found_member.variables, "params": params}, pixels, labels)
            assert rates(found, i, level)[0] == pytest.approx(expected, abs=1e-6)


def test_the_command_writes_table_numbers_and_picture(defended, capsys):
    out = defended("clp")
    capsys.readouterr()
    assert main(["pruning-curve", str(out), "clp"]) == 0
    printed = capsys.readouterr().out
    assert "never attacked, no data" in printed and "10 % poisoned" in printed
    (found,) = curves.measure(out, "clp")
    table = pl.read_csv(out / "figures" / "pruning-curve-clp.csv")
    assert table.height == 2 * len(LEVELS_OF_U) and table.columns[-5:] == ["level", found.label, "acc", "asr", "ra"]
    assert table["acc"].to_list() == pytest.approx(curves.frame([found])["acc"].to_list())
    first = curves.grouped([found])[1]
    line = f"| {U:g} | {100 * first.rates['acc'][0, LEVELS_OF_U.index(U)]:.1f} |"
    assert line in printed.split("10 % poisoned")[1]
    assert (out / "figures" / "pruning-curve-clp.png").stat().st_size > 10_000


def test_what_has_no_curve_is_named(defended):
    out = defended("ft", "clp")
    with pytest.raises(UserError, match="ft has no pruning curve"):
        curves.measure(out, "ft")
    with pytest.raises(UserError, match=r"'clpp'.*'clp'"):
        curves.measure(out, "clpp")
    with pytest.raises(UserError, match="does not tell nothing_of_the_kind"):
        row = next(row for row in curves.measure(out, "clp")[0].rows)
        curves._fields(out, row, ("nothing_of_the_kind",))
