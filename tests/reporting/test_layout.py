"""The page in a real browser, as wide as a telephone and as a screen, light and dark: nothing is cut off, words are explained."""

import json
import re
from html import unescape
from pathlib import Path

import polars as pl
import pytest

from bdjax.reporting import html
from bdjax.reporting.glossary import WORDS, meaning
from tests.reporting.browser import MARKS, browse
from tests.results.test_by_class import counts

pytestmark = MARKS
DARK = "--blink-settings=preferredColorScheme=0"
PROBE = Path(__file__).with_name("probe.html").read_text()


@pytest.fixture(scope="module")
def page(records, tmp_path_factory):
    """Five defenses with counts by class: one destroys its networks everywhere, one against one attack alone."""
    ft, all_badnets = records.filter(pl.col("defense") == "ft"), pl.col("attack") == "badnets"
    numbers = {"acc": 0.1, "asr": 0.0, "arr": 1 - 0.1 / 0.95, "der": 0.5}
    dead = ft.filter(pl.col("status") == "ok").with_columns(
        defense=pl.lit("dead"), cell=pl.col("cell") + "dead", **{name: pl.lit(value) for name, value in numbers.items()}
    )
    part = records.filter(pl.col("defense") == "clp").with_columns(
        defense=pl.lit("part"), cell=pl.col("cell") + "part", acc=pl.when(all_badnets).then(0.1).otherwise(pl.col("acc"))
    )
    every = pl.concat([records, dead, part]).with_columns(by_class=pl.lit(counts([9, 5, 1], [0, 3, 4])))
    return html.build(tmp_path_factory.mktemp("layout"), every)


def probed(page, width, *options, choice=""):
    """What a page looks like in a frame of that width."""
    path = page.parent / "probe.html"
    path.write_text(PROBE.replace("WIDTH", str(width)).replace("CHOICE", choice))
    text = browse(path, "--dump-dom", "--allow-file-access-from-files", *options)
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', text, re.S)[1]))


def contrast(ink, paper):
    """The ratio of WCAG of two colours as a browser names them."""

    def luminance(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(ink), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_cut_off_and_everything_can_be_read(page, width, theme):
    found = probed(page, width, *([DARK] if theme == "dark" else []))
    assert found["wide"] == width and found["scrolls"] == 0 and found["outside"] == []
    assert len(found["images"]) == 8 * 5 and found["clipped"] == []  # digits, two attacks, and what each changed
    for pixels, across, down in found["images"]:
        assert pixels == 16 and abs(across - down) < 0.1 and (38 if width == 400 else 90) < across < 100
    assert len(found["charts"]) > 8 and min(found["charts"]) > 0.79 and max(found["charts"]) < 1.01
    for ink, paper in found["colours"]:
        assert contrast(ink, paper) >= 4.5
    ink, paper = found["colours"][0]
    assert (contrast(paper, "rgb(0, 0, 0)") < 2) == (theme == "dark") and contrast(ink, paper) > 10
    assert all(fits for _, fits in [*found["told"].values(), found["mark"], found["badge"], found["lead"]])


def test_words_are_told_to_who_comes_by_keyboard_and_the_page_ends_with_them(page):
    found = probed(page, 400)
    told = {column: text for column, (text, _) in found["told"].items()}
    for column, word in (
        ("acc", "ACC"),
        ("asr", "ASR"),
        ("mitigated", "mitigated"),
        ("spc", "spc"),
        ("n", "n"),
        ("cost", "cost"),
    ):
        assert told[column] == meaning(word)
    assert told["defense"] == "" and found["region"][0] == ""
    assert found["mark"][0] == found["title"] == meaning("†") and found["badge"][0] == meaning("at chance")
    assert found["lead"][0] == meaning("poison ratio") and found["hidden"]
    assert found["glossary"] == [word.name for word in WORDS]


def test_networks_that_say_nothing_are_marked_as_those_that_are_chosen_are(page):
    every, of_blended = (
        {name: rest for name, *rest in probed(page, 1400, choice=choice)["badges"]} for choice in ("", "attack=blended")
    )
    assert every["dead"] == of_blended["dead"] == ["badge:at chance"]
    assert every["part"] == ["badge part:at chance"] and of_blended["part"] == []
    assert set(every) == {"grad_prune", "clp", "fp", "ft", "dead", "part"} and every["fp"] == []
