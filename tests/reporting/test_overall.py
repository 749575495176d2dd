"""Figures over all tasks: what they show is what the records say, and what cannot be compared is left out."""

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from bdjax.errors import UserError
from bdjax.reporting import overall
from bdjax.reporting.rankings import improvement, rank_diagram
from bdjax.results.methods import block, methods
from tests.reporting.conftest import row

ATTACKS, SEEDS = ("badnets", "blended", "wanet"), (0, 1, 2)
RATES = {"ft": (0.9, 0.5), "fp": (0.88, 0.02), "anp": (0.45, 0.0), "clp": (0.6, 0.6)}  # ACC and ASR after
FIFTH = {"nad": (0.7, 0.3)}


def made(rates=RATES, **changes):
    rows = []
    for j, attack in enumerate(ATTACKS):
        for seed in SEEDS:
            rows.append(row(seed, 0.1, attack, "none", None, 0, 0))
            for defense, (acc, asr) in rates.items():
                spc = None if defense == "clp" else 10
                rows.append(row(seed, 0.1, attack, defense, spc, acc - 0.01 * seed, asr + 0.02 * j, **changes))
    return pl.DataFrame(rows, infer_schema_length=None)


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_methods_are_pooled_by_task_and_one_that_halves_the_accuracy_is_behind_one_that_keeps_it():
    found = methods(made(), 10)
    assert [method.label for method in found] == ["fp", "ft", "anp", "clp"]  # fp alone mitigates, ft keeps the accuracy
    assert [method.label for method in methods(made(), 10, best=("der",))] == ["fp", "anp", "ft", "clp"]
    assert all(len(method.attacks) == 3 and all(len(runs) == 3 for runs in method.scores["der"].values()) for method in found)
    assert [method.label for method in methods(made(), None)] == ["clp"]
    assert [method.label for method in methods(made(), 99)] == ["clp"]
    never = made().with_columns(ratio=pl.lit(0.0))
    assert methods(never, 10) == []


def test_settings_and_profiles_tell_two_of_one_name_apart():
    other = made().filter(pl.col("defense") == "ft").with_columns(hyper=pl.lit('{"lr":0.1}'))
    first = made().filter(pl.col("defense") == "ft").with_columns(hyper=pl.lit('{"lr":0.01}'))
    third = first.with_columns(profile=pl.lit("reference"))
    assert {m.label for m in methods(pl.concat([first, other]), 10)} == {"ft, lr 0.01", "ft, lr 0.1"}
    assert {m.label for m in methods(pl.concat([first, third]), 10)} == {"ft", "ft, reference"}


def test_the_heat_map_holds_the_mean_of_every_defense_and_attack():
    labels = texts(overall.heat_map(methods(made(), 10)))
    der = [(max(0, 0.99 - asr) - max(0, 0.95 - acc) + 1) / 2 for acc, asr in ((0.44, 0.0), (0.44, 0.04))]
    assert f"{100 * der[0]:.0f}" in labels and f"{100 * der[1]:.0f}" in labels and {"anp", "wanet"} <= set(labels)
    part = made().filter(~((pl.col("defense") == "anp") & (pl.col("attack") == "wanet")))
    assert len([text for text in texts(overall.heat_map(methods(part, 10))) if text.isdigit()]) >= 11
    labels = texts(overall.heat_map(methods(made(), 10), "mitigated"))
    assert labels.count("100") >= 3 and labels.count("0") >= 9


def test_all_to_all_has_a_column_of_its_own():
    rule = pl.col("config").str.replace('"target": 0', '"target": 0, "labels": "all_to_all"', literal=True)
    both = pl.concat([made(), made().filter(pl.col("attack") == "wanet").with_columns(config=rule)])
    found = methods(both, 10)
    assert list(dict.fromkeys(found[0].attacks.values())) == ["badnets", "blended", "wanet", "wanet (all_to_all)"]
    assert "wanet (all_to_all)" in texts(overall.heat_map(found))


def test_ranks_are_those_of_the_tasks_that_all_met():
    figure = rank_diagram(methods(made(), 10))
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [1, 2, 3, 4])
    assert "mean rank over 3 tasks" in " ".join(texts(figure))


def test_a_defense_that_is_rarely_run_takes_no_tasks_away():
    part = made().filter((pl.col("defense") != "anp") | (pl.col("attack") == "wanet"))
    kept, tasks = block(methods(part, 10))
    assert [method.label for method in kept] == ["fp", "ft", "clp"] and len(tasks) == 3
    beside = block(methods(part, 10), "der")[1]
    assert beside == tasks


def test_the_chance_of_improvement_is_of_row_over_column():
    figure = improvement(methods(made(), 10))
    image = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert np.isnan(np.diag(image)).all() and image[0, 3] == 1.0 and image[3, 0] == 0.0


def test_cost_and_spread_are_drawn_for_every_defense():
    found = methods(made(), 10)
    assert len(overall.cost_benefit(found).axes[0].lines) == 4
    assert list(dict.fromkeys(text for text in texts(overall.boxes(found)) if text in RATES)) == ["fp", "ft", "anp", "clp"]
    assert len(overall.profiles(found).axes[0].lines) == 4


def test_everything_is_drawn_where_there_is_something_to_compare():
    slugs = [one.slug for one in overall.figures_of(made(RATES | FIFTH))]
    names = ("mitigated", "heat-map", "boxes", "cost-benefit", "profiles", "ranks", "improvement")
    assert slugs == [f"{name}-10-per-class" for name in names]
    one_task = made(RATES | FIFTH).filter(pl.col("attack") == "wanet")
    assert "ranks-10-per-class" not in [one.slug for one in overall.figures_of(one_task)]
    assert list(overall.figures_of(made({}))) == []


@pytest.mark.parametrize(
    ("count", "drawn", "said"), [(4, ["mitigated", "heat-map", "boxes"], "here are 4."), (1, [], "here is one.")]
)
def test_methods_are_compared_from_five_on_and_else_it_is_said(count, drawn, said):
    *found, last = overall.figures_of(made(dict(list(RATES.items())[:count])))
    assert [one.slug for one in found] == [f"{name}-10-per-class" for name in drawn]
    assert last.figure is None and last.caption == overall.COMPARISONS and last.missing.endswith(said)


def test_the_map_of_der_is_neutral_where_nothing_changed_and_its_bar_says_so():
    figure = overall.heat_map(methods(made(), 10))
    shown = figure.axes[0].images[0]
    middle, low, high = (np.array(shown.to_rgba(value)[:3]) for value in (overall.UNCHANGED, 0, 100))
    assert np.ptp(middle) < 0.01 and min(np.ptp(low), np.ptp(high)) > 0.3  # grey; red; blue
    assert low[0] > low[2] and high[2] > high[0]
    assert {"50 no change", "100 perfect", "DER, percent"} <= set(texts(figure)) and len(figure.axes) == 2
    many = {f"{name}{k}": rates for name, rates in RATES.items() for k in range(3)}
    for rates, text in ((RATES, "percent"), (many, "share of runs mitigated, percent")):  # the whole name where there is room
        assert text in texts(overall.heat_map(methods(made(rates), 10), "mitigated"))


def test_every_dot_of_cost_against_benefit_is_named():
    assert {"fp", "ft", "anp", "clp"} <= set(texts(overall.cost_benefit(methods(made(), 10))))


def test_nothing_to_draw_is_an_error():
    with pytest.raises(UserError, match="no defense met"):
        overall.heat_map([])
    with pytest.raises(UserError, match="two defenses"):
        rank_diagram(methods(made(), 10)[:1])
