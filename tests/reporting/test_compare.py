"""Masks of two defenses compared: pairs, counts, errors."""

import json

import pytest

from bdjax.cli.main import main
from bdjax.errors import UserError
from bdjax.results import masks as masks_of
from bdjax.store import records
from tests.reporting.conftest import frame, row


def masks(**pruned):
    return json.dumps({layer: {"d": 8, "pruned": channels} for layer, channels in pruned.items()})


@pytest.fixture
def two():
    """Seeds 0 and 1: `anp` with 10 per class, `clp` without data; another network that only one of them repaired."""
    return frame([
        row(0, 0.1, "badnets", "anp", 10, 0.9, 0.1, masks=masks(bn1=[0, 1, 2], bn2=[])),
        row(1, 0.1, "badnets", "anp", 10, 0.9, 0.1, masks=masks(bn1=[4], bn2=[])),
        row(0, 0.1, "badnets", "clp", None, 0.9, 0.1, masks=masks(bn1=[1, 2, 3, 7], bn2=[])),
        row(1, 0.1, "badnets", "clp", None, 0.9, 0.1, masks=masks(bn1=[], bn2=[])),
        row(2, 0.1, "badnets", "clp", None, 0.9, 0.1, masks=masks(bn1=[0], bn2=[0])),
        row(0, 0.1, "badnets", "fp", 10, 0.9, 0.1, masks=masks(linear=[0])),
        row(0, 0.1, "badnets", "bnp", 2, 0.9, 0.1, masks=masks(bn1=[0])),
    ])  # fmt: skip


def test_the_overlap_is_counted_over_the_members_that_both_repaired(two):
    first, second = masks_of.overlaps(two, "anp", "clp")
    assert first == (0.1, "bn1", 8, 2, 2.0, 2.0, 1.0, (3 * 4 / 8 + 0) / 2, (2 / 5 + 0) / 2)
    assert second == (0.1, "bn2", 8, 2, 0.0, 0.0, 0.0, 0.0, None)


def test_soft_masks_count_from_a_factor_on(two):
    soft = json.dumps({"bn1": {"d": 4, "pruned": [1], "factors": [0.5, 0, 0.25, 1]}})
    assert masks_of.pruned(json.loads(soft)["bn1"]).tolist() == [False, True, False, False]
    assert masks_of.pruned(json.loads(soft)["bn1"], 0.3).tolist() == [False, True, True, False]


def test_defenses_that_cannot_be_compared_are_named(two):
    with pytest.raises(UserError, match=r"anpp.*anp"):
        masks_of.overlaps(two, "anpp", "clp")
    with pytest.raises(UserError, match=r"no layer in common: bn1, bn2 and linear"):
        masks_of.overlaps(two, "anp", "fp")
    with pytest.raises(UserError, match="no trained network was defended by both anp and bnp"):
        masks_of.overlaps(two, "anp", "bnp")  # 10 per class against 2


def test_the_command_prints_the_table_and_draws_it(two, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "read", lambda out: two)
    assert main(["compare-masks", str(tmp_path), "anp", "clp"]) == 0
    assert "| 10 % poisoned | bn1 | 8 | 2.0 | 2.0 | 1.0 | 0.8 | 0.20 | 2 |" in capsys.readouterr().out
    assert (tmp_path / "figures" / "masks-anp-clp.png").stat().st_size > 10_000
    assert main(["compare-masks", str(tmp_path), "anp", "clp", "--below", "1"]) == 2
