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
from bdjax.report.curves import frame, grouped
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
def repaired(population, tmp_path_factory):
    """``f(defense, ...) -> folder`` of the trained members, those of one seed repaired by these defenses and maybe others."""
    folder = shutil.copytree(population[0], tmp_path_factory.mktemp("curves") / "out")
    for path in (folder / "records").rglob("*.parquet"):
        if records.read_file(path)[0]["defense"] != "none":
            path.unlink()

    def repaired(*defenses):
        settings, hyper = ({name: told[name] for name in defenses if name in told} for told in (SETTINGS, HYPER))
        go(dataclasses.replace(GRID, defenses=defenses, seeds=(0,), defense_config=settings, hyper=hyper), folder)
        return folder

    return repaired


def rates(found, i, level):
    counts = found.counts
    return counts.correct[i, level] / counts.clean[i, level], counts.attacked[i, level] / counts.triggered[i, level]


@pytest.mark.parametrize("defense", some_later(["anp", "rnp", "bnp", "clp"], {"anp", "rnp", "bnp"}))
def test_the_chosen_level_is_the_network_of_the_record(repaired, defense):
    out = repaired(defense)
    (found,) = curves.measure(out, defense)
    assert [(row["seed"], row["ratio"]) for row in found.rows] == [(0, 0.0), (0, 0.1)]
    assert found.counts.correct.shape == (2, len(found.points))
    for i, row in enumerate(found.rows):
        told = json.loads(row["trace"])
        level = told["level"] if "level" in told else LEVELS_OF_U.index(U)
        pruned = sum(len(layer["pruned"]) for layer in json.loads(row["masks"]).values())
        assert pruned > 0, "a curve on which nothing is pruned shows nothing"
        assert rates(found, i, level) == pytest.approx((row["acc"], row["asr"]), abs=1e-12)
        if "level" in told:  # outliers are pruned at u = 6 too
            assert rates(found, i, 0) == pytest.approx((row["acc_before"], row["asr_before"]), abs=1e-12)
        assert len({rates(found, i, k) for k in range(len(found.points))}) > 1


@pytest.mark.slow
def test_fine_prunings_levels_are_networks_before_their_tuning(repaired):
    out = repaired("fp")
    (found,) = curves.measure(out, "fp")
    for i, row in enumerate(found.rows):
        held = member.held(out, row)
        rank, d = np.array(json.loads(row["trace"])["rank"]), 16
        assert sorted(rank) == list(range(d))
        assert rates(found, i, 0) == pytest.approx((row["acc_before"], row["asr_before"]), abs=1e-12)
        for level in (30, 60, 90):
            keep = jnp.asarray(rank >= np.ceil(round(found.points[level] * d, 9)), jnp.float32)
            params = tree.mask_inputs(held.variables["params"], {"linear": keep})
            pixels, labels = images().test
            expected = accuracy(held, {**held.variables, "params": params}, pixels, labels)
            assert rates(found, i, level)[0] == pytest.approx(expected, abs=1e-6)


def test_the_command_writes_table_numbers_and_picture(repaired, capsys):
    out = repaired("clp")
    capsys.readouterr()
    assert main(["pruning-curve", str(out), "clp"]) == 0
    printed = capsys.readouterr().out
    assert "never attacked, no data" in printed and "10 % poisoned" in printed
    (found,) = curves.measure(out, "clp")
    table = pl.read_csv(out / "figures" / "pruning-curve-clp.csv")
    assert table.height == 2 * len(LEVELS_OF_U) and table.columns[-5:] == ["level", found.label, "acc", "asr", "ra"]
    assert table["acc"].to_list() == pytest.approx(frame([found])["acc"].to_list())
    first = grouped([found])[1]
    line = f"| {U:g} | {100 * first.rates['acc'][0, LEVELS_OF_U.index(U)]:.1f} |"
    assert line in printed.split("10 % poisoned")[1]
    assert (out / "figures" / "pruning-curve-clp.png").stat().st_size > 10_000


def test_what_has_no_curve_is_named(repaired):
    out = repaired("ft", "clp")
    with pytest.raises(UserError, match="ft has no pruning curve"):
        curves.measure(out, "ft")
    with pytest.raises(UserError, match=r"'clpp'.*'clp'"):
        curves.measure(out, "clpp")
    with pytest.raises(UserError, match="does not tell nothing_of_the_kind"):
        row = next(row for row in curves.measure(out, "clp")[0].rows)
        curves._fields(out, row, ("nothing_of_the_kind",))
