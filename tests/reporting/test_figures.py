"""Figures: what is drawn is what the records say."""

import re
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from bdjax.errors import UserError
from bdjax.reporting import figures
from bdjax.reporting.svg import THEME


def texts(figure):
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(mpl.text.Text)}


def dots(axis):
    """The x positions of filled and hollow single dots."""
    lines = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    hollow = [line.get_xdata()[0] for line in lines if line.get_markerfacecolor() == figures.PAPER]
    return [line.get_xdata()[0] for line in lines if line.get_markerfacecolor() != figures.PAPER], hollow


def test_before_after_draws_both_rates_of_every_defense_and_names_the_lost(records):
    figure = figures.before_after(records.filter(pl.col("attack") == "blended"))
    assert len(figure.axes) == 4  # two ratios, ACC and ASR
    after, before = dots(figure.axes[3])  # 10 %, ASR: clp, fp (infeasible), ft (two of four), grad_prune
    np.testing.assert_allclose(after, [6.5, 42.5, 3.5], atol=1e-9)
    np.testing.assert_allclose(before, [99, 99, 99], atol=1e-9)
    labels = texts(figure)
    assert {
        "clp",
        "fp · 10 per class",
        "ft · 10 per class (2 of 4)",
        "grad_prune† · 10 per class",
        "4 infeasible",
        "42.5",
    } <= labels


def test_before_after_of_one_seed_has_no_interval(one_seed):
    widths = [
        line.get_linewidth() for axis in figures.before_after(one_seed).axes for line in axis.lines if line.get_marker() == "None"
    ]
    assert widths and max(widths) < 2


def test_rows_that_would_look_alike_are_told_apart(records):
    ft = records.filter((pl.col("defense") == "ft") & (pl.col("attack") == "badnets"))
    faster = ft.with_columns(hyper=pl.lit('{"lr":0.1,"momentum":0.9}'))
    slower = ft.with_columns(hyper=pl.lit('{"lr":0.01,"momentum":0.9}'))
    labels = texts(figures.before_after(pl.concat([faster, slower])))
    assert {"ft · 10 per class · lr 0.1", "ft · 10 per class · lr 0.01"} <= labels  # what they share is not repeated
    labels = texts(figures.before_after(pl.concat([ft, ft.with_columns(cell=pl.lit("c" * 24))])))
    assert "ft · 10 per class · cccccccc" in labels


@pytest.mark.parametrize("wide", [2.5, 3.7, 8.0])
def test_a_legend_is_not_cut_off(wide):
    figure, _ = figures.panels_of(1, 1, (wide, 2.9))
    names = ("never attacked", "5 % poisoned", "15 % poisoned")
    figures.styled(lambda: figures.legend(figure, [(name, {"color": "red"}) for name in names]) or figure)()
    figure.draw_without_rendering()
    (shown,) = figure.legends
    box = shown.get_window_extent()
    assert [text.get_text() for text in shown.get_texts()] == list(names)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_before_after_needs_a_defense(records):
    with pytest.raises(UserError, match="no defense"):
        figures.before_after(records.filter(pl.col("defense") == "none"))


def test_pruning_curve_follows_the_trace(records):
    fp = records.filter((pl.col("defense") == "fp") & (pl.col("attack") == "badnets"))
    figure = figures.pruning_curve(fp)
    assert len(figure.axes) == 2
    axis = figure.axes[1]
    thin = [line for line in axis.lines if line.get_linewidth() == 0.8]
    assert len(thin) == 4
    np.testing.assert_allclose(thin[0].get_xdata(), 100 * np.arange(9) / 16)
    np.testing.assert_allclose(thin[0].get_ydata(), 100 * (30 - np.arange(9) ** 2 // 8) / 30)
    np.testing.assert_allclose(dots(axis)[0], [25.0] * 4)  # level 4 of 16 channels
    assert sum(line.get_linewidth() == 2.2 for line in axis.lines) == 1


def test_pruning_curve_leaves_out_other_rows_and_needs_one(records):
    assert len(figures.pruning_curve(records.filter(pl.col("attack") == "badnets")).axes) == 2
    with pytest.raises(UserError, match="pruning curve"):
        figures.pruning_curve(records.filter(pl.col("defense") == "clp"))


def test_pruned_channels_per_layer(records):
    figure = figures.pruned_channels(records.filter((pl.col("defense") == "clp") & (pl.col("attack") == "badnets")))
    medians = figure.axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(medians, [100 * 0.5 / 8, 100 * 0.5 / 16, 100 * 0.5 / 16])  # 0, 1, 2 and 0 channels
    assert {"conv1/norm (8)", "never attacked", "10 % poisoned"} <= texts(figure)
    with pytest.raises(UserError, match="masks"):
        figures.pruned_channels(records.filter(pl.col("defense") == "ft"))


def test_the_style_sheet_has_the_colours_of_the_figures():
    sheet = files("bdjax.reporting").joinpath("theme.css").read_text()
    light, dark = sheet.split("@media")
    assert f"--grey: {figures.GREY}" in light
    for name, color in ((name, color) for color, name in THEME.items() if "series" in name):
        assert f"--{name[6:-1]}: {color}" in light
    assert set(re.findall(r"--series-\d", dark)) < set(re.findall(r"--series-\d", light))
    used = "".join(files("bdjax.reporting").joinpath(name).read_text() for name in ("page.css", "theme.css"))
    by_templates = {"--natural", "--share-of", "--columns", "--side"}
    assert set(re.findall(r"var\((--[\w-]+)", used)) - by_templates <= set(re.findall(r"(--[\w-]+):", light))
    assert not re.search(r": [^;}]*#[0-9a-f]{3,6}", files("bdjax.reporting").joinpath("page.css").read_text())


def test_settings_of_matplotlib_stay_as_they_were(records):
    before = dict(mpl.rcParams)
    figures.before_after(records)
    assert dict(mpl.rcParams) == before


def test_long_names_of_defenses_leave_room_for_the_headings(records):
    long = "my_folder/my_defense.py:finetune_with_a_name_of_many_words_and_more"
    figure = figures.before_after(records.with_columns(defense=pl.col("defense").replace("ft", long)).head(20))
    figure.draw_without_rendering()
    first, second = (axis._left_title.get_window_extent() for axis in figure.axes[:2])
    assert first.x1 < second.x0
