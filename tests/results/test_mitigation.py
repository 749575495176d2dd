"""Mitigated: the backdoor gone and the accuracy kept, in the same run; what was never attacked is no evidence of it."""

import csv as reader
import io

import numpy as np
import polars as pl
import pytest

from bdjax import metrics
from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.reporting import html, tables
from bdjax.results import intervals
from bdjax.results.mitigation import Limits, checked, judged
from bdjax.store import records as store
from tests.reporting.conftest import frame, row

LOST = ("acc", "asr", "ra", "arr", "rdr", "der")


def one(acc=0.94, asr=0.01, *, seed=0, ratio=0.1, attack="badnets", defense="ft", **changes):
    return row(seed, ratio, attack, defense, 10, acc, asr) | changes


def verdicts(*rows, limits=None):
    return judged(frame(rows), *([limits] if limits else []))["mitigated"].to_list()


def test_a_run_is_mitigated_where_the_backdoor_is_gone_and_the_accuracy_kept():
    kept, lost = 0.95 * 0.9, 0.95 * 0.89
    assert verdicts(one(kept, 0.10), one(kept, 0.11), one(lost, 0.10), one(lost, 0.5)) == [1, 0, 0, 0]
    assert verdicts(one(0.99, 0.0)) == [1]  # accuracy may rise


def test_a_rate_that_is_the_limit_is_within_it():
    asr, acc = 9 / 90, (9 * 38 / 40) / 10
    assert verdicts(one(acc, asr, acc_before=38 / 40, arr=float(metrics.arr(38 / 40, acc)))) == [1]


def test_both_limits_are_flags():
    run = one(0.80, 0.25)
    assert verdicts(run) == [0]
    assert verdicts(run, limits=Limits(max_asr=0.25, max_arr=0.16)) == [1]
    assert verdicts(run, limits=Limits(max_asr=0.25)) == verdicts(run, limits=Limits(max_arr=0.16)) == [0]
    with pytest.raises(UserError, match=r"--max-asr 10 is not a fraction; allowed: 0 … 1 \(10 % is 0.1\)"):
        checked(Limits(max_asr=10))
    with pytest.raises(UserError, match="--asr-margin nan"):
        checked(Limits(asr_margin=float("nan")))


def test_the_rate_of_never_attacked_models_of_the_same_scenario_moves_the_limit():
    """A clean model calls 30 % of the triggered images the target: no defense can be asked for less."""
    clean = [
        one(defense="none", ratio=0.0, seed=seed, asr_before=0.28 + 0.02 * seed, asr=0.28 + 0.02 * seed) for seed in (0, 1, 2)
    ]
    assert verdicts(*clean, one(asr=0.34), one(asr=0.36)) == [None] * 3 + [1, 0]
    assert verdicts(*clean, one(asr=0.34), limits=Limits(asr_margin=0.0))[-1] == 0
    other = [row | {"config": row["config"].replace('"epochs": 20', '"epochs": 21')} for row in clean]
    assert verdicts(*other, one(asr=0.34))[-1] == 0  # of another training
    chance = [row | {"acc_before": 0.11, "acc": 0.11} for row in clean]
    assert verdicts(*chance, one(asr=0.34))[-1] == 0  # a clean model that learned nothing sets no limit


def test_what_was_not_attacked_is_left_out_and_counted():
    """Ratio 0, an ASR already below the limit, a network that was not trained, or that was broken before."""
    rows = [
        one(ratio=0.0),
        one(asr_before=0.09),
        one() | dict.fromkeys(("acc_before", "asr_before", *LOST)) | {"status": "non_finite"},
        one(acc_before=0.1, arr=-8.0),
        one(poisoned=0),
        one(),
    ]
    judged_rows = judged(frame(rows))
    assert judged_rows["mitigated"].to_list() == [None] * 5 + [1]
    assert judged_rows["left_out"].to_list() == [False, True, True, True, True, False]
    attacked = frame([run | {"seed": seed} for seed, run in enumerate(rows[1:])])
    found = tables.table(attacked).row(0, named=True)
    assert (found["runs"], found["mitigated_n"], found["left_out"], found["mitigated"]) == (5, 1, 4, 1.0)
    text = tables.markdown(attacked)
    assert "Of 5 runs at ratios above 0, 4 are left out of this share" in text and "| not attacked |" in text and "(n=1)" in text


def test_a_run_that_failed_or_diverged_has_not_mitigated_and_an_infeasible_one_is_not_counted():
    lost = {**dict.fromkeys(LOST), "reason": "x"}
    rows = [one(seed=i) | lost | {"status": s} for i, s in enumerate(("failed", "non_finite", "infeasible"))]
    judged_rows = judged(frame([*rows, one(seed=3)]))
    assert judged_rows["mitigated"].to_list() == [0, 0, None, 1] and not judged_rows["left_out"].any()
    found = tables.table(frame([*rows, one(seed=3)])).row(0, named=True)
    assert (found["mitigated_n"], found["left_out"], found["infeasible"], found["runs"]) == (3, 0, 1, 4)
    np.testing.assert_allclose(found["mitigated"], 1 / 3)


def test_every_run_of_a_defense_at_a_ratio_above_0_is_counted_once(records):
    judged_rows = tables.table(records).filter(pl.col("defense") != "none", pl.col("ratio") > 0)
    assert (judged_rows["mitigated_n"] + judged_rows["left_out"] + judged_rows["infeasible"]).to_list() == judged_rows[
        "runs"
    ].to_list()


def test_the_share_is_a_plain_mean_with_the_stratified_bootstrap_interval():
    """Of eight runs seven are mitigated; the interquartile mean would say all."""
    rows = [one(asr=0.5 if seed == 0 and attack == "blended" else 0.01, seed=seed, attack=attack)
            for attack in ("badnets", "blended") for seed in range(4)]  # fmt: skip
    found = tables.leaderboard(frame(rows)).row(0, named=True)
    assert found["mitigated"] == 7 / 8 and found["mitigated_n"] == 8
    values, strata = [1, 1, 1, 1, 0, 1, 1, 1], [0] * 4 + [1] * 4
    low, high = intervals.stratified_bootstrap(values, strata, trimmed=False)
    assert (found["mitigated_low"], found["mitigated_high"]) == (low, high) and low < 7 / 8 < high
    assert low >= 0.5  # each draw holds four of badnets, all mitigated
    judged_rows = tables.table(frame(rows)).filter(pl.col("attack") == "blended").row(0, named=True)
    assert (judged_rows["mitigated_low"], judged_rows["mitigated_high"]) == intervals.stratified_bootstrap(
        values[4:], trimmed=False
    )
    many = intervals.summaries([values[4:]] * 2, trimmed=False)
    np.testing.assert_allclose(many.low, judged_rows["mitigated_low"])


def test_the_interval_of_a_mean_is_that_of_resamples_drawn_one_by_one():
    generator = np.random.default_rng(4)
    values, strata = generator.integers(0, 2, 11), np.array([0] * 4 + [1] * 7)
    drawn = [np.mean([*generator.choice(values[:4], 4), *generator.choice(values[4:], 7)]) for _ in range(4000)]
    low, high = intervals.stratified_bootstrap(values, strata, draws=4000, trimmed=False)
    np.testing.assert_allclose((low, high), np.quantile(drawn, [0.025, 0.975]), atol=1 / 11 + 1e-9)


@pytest.fixture(scope="module")
def broken():
    """`zero` destroys the network and so its backdoor; `half` loses half of the accuracy; `ft` mitigates one run in four."""
    rows = []
    for attack in ("badnets", "blended"):
        for seed in range(4):
            rows.append(row(seed, 0.1, attack, "none", None, None, None))
            rows.append(
                one(0.1, 0.0, seed=seed, attack=attack, defense="zero", one_class=1.0, one_class_before=0.12, majority=0.1)
            )
            rows.append(one(0.47, 0.0, seed=seed, attack=attack, defense="half"))
            rows.append(one(0.93, 0.05 if seed == 0 else 0.9, seed=seed, attack=attack))
    return pl.DataFrame(rows, infer_schema_length=None)


def test_a_defense_that_destroys_the_network_is_not_the_best(broken):
    judged_rows = tables.leaderboard(broken)
    assert judged_rows["defense"].to_list() == ["ft", "half", "zero"]
    assert judged_rows["der"][0] < judged_rows["der"][2] < judged_rows["der"][1]  # DER would have it the other way round
    assert judged_rows["mitigated"].to_list() == [0.25, 0.0, 0.0]
    never = broken.filter((pl.col("defense") != "ft") | (pl.col("seed") > 0))  # nobody mitigates: who keeps the accuracy leads
    assert tables.leaderboard(never)["defense"].to_list() == ["ft", "half", "zero"]


def test_the_headline_and_its_limits_stand_in_table_csv_latex_and_page(broken, tmp_path, sketched):
    limits = Limits(max_asr=0.07, asr_margin=0.03, max_arr=0.2)
    text = html.build(tmp_path, broken, limits=limits).read_text()
    words = ("at most 7 %", "within 3 points", "at most 20 % of the accuracy")
    table, tex, board = ((tmp_path / name).read_text() for name in ("table.md", "table.tex", "leaderboard.tex"))
    assert all(word in table and word in text for word in words)
    assert all(word.replace("%", r"\%") in tex and word.replace("%", r"\%") in board for word in words)
    assert "| mitigated % |" in table and 'data-c="mitigated"' in text
    rows = list(reader.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    half = next(line for line in rows if line["defense"] == "half")
    assert {line["defense"]: line["mitigated"] for line in rows if line["attack"] == "badnets"} == {
        "none": "", "ft": "0.25", "half": "0.0", "zero": "0.0",
    }  # fmt: skip
    assert half["mitigated_n"] == "4" and half["left_out"] == "0"


def test_a_page_judged_by_other_limits_is_drawn_again(broken):
    from bdjax.results.scenarios import scenarios

    shown = scenarios(broken)[0]
    assert html._digest(shown, Limits()) != html._digest(shown, Limits(max_asr=0.2))


def test_the_commands_take_the_limits(broken, tmp_path, monkeypatch, capsys, sketched):
    monkeypatch.setattr(store, "read", lambda out: broken)
    assert cli.main(["report", str(tmp_path), "--no-pages", "--max-asr", "0.95", "--max-arr", "0.05", "--asr-margin", "0"]) == 0
    assert "at most 95 %, or within 0 points" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    for command in (["report", str(tmp_path)], ["run", "--out", str(tmp_path / "new")]):
        assert cli.main([*command, "--max-asr", "10"]) == 2
        assert capsys.readouterr().err == "bdjax: error: --max-asr 10 is not a fraction; allowed: 0 … 1 (10 % is 0.1)\n"
    assert not (tmp_path / "new").exists()
