"""The tables of classes: one per defense, the classes with the most mistakes, in the page where records count by class."""

import re

import pytest

from bdjax.reporting import classes, html
from bdjax.results.by_class import pooled
from tests.results.test_by_class import made


@pytest.fixture
def of_scenario():
    return classes.OfScenario("badnets", "badnets", ("cat", "dog", "owl"), pooled(made()))


def test_a_table_holds_the_rates_of_every_class(of_scenario):
    text = classes.tables([of_scenario])
    cells = [re.findall(r"<t[hd][^>]*>\s*([^<]*)", line) for line in re.findall(r"<tr>.*?</tr>", text, flags=re.S)][1:]
    assert cells == [
        ["cat", "90.0", "90.0", "–", "–", "–", "–"],
        ["dog", "90.0", "75.0", "100.0", "20.0", "0.0", "80.0"],
        ["owl", "90.0", "10.0", "100.0", "5.0", "0.0", "95.0"],
    ]
    assert "ft against badnets, 10 % poisoned, 10 per class" in text
    assert "2 runs, lowest ACC 10.0 % (owl), highest ASR 20.0 % (dog)" in text and "with the most mistakes" not in text


def test_of_many_classes_those_with_the_most_mistakes_are_shown(of_scenario, monkeypatch):
    monkeypatch.setattr(classes, "MOST", 2)
    text = classes.tables([of_scenario])
    assert "owl</th>" in text and "dog</th>" in text and "cat</th>" not in text and "1 more is left out" in text


def test_classes_without_names_are_numbered(of_scenario):
    assert '<th scope="row">2</th>' in classes.tables([of_scenario._replace(names=())])


def test_the_page_has_them_one_click_away(tmp_path, sketched):
    text = html.build(tmp_path / "told", made()).read_text()
    assert 'id="classes"' in text and text.count('<details class="classes">') == 1 and "<details open" not in text
    untold = html.build(tmp_path / "untold", made().drop("by_class")).read_text()
    assert 'id="classes"' not in untold
