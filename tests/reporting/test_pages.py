"""Where a folder holds many training configurations, each has a page of its own, drawn when its records change."""

import re

import polars as pl
import pytest

from bdjax.reporting import html
from bdjax.results.scenarios import scenarios
from tests.reporting.conftest import frame, row

ATTACKS = ("badnets", "blended", "sig", "wanet", "bpp")  # one more than an index holds itself


@pytest.fixture(scope="module")
def many():
    rows = []
    for i, attack in enumerate(ATTACKS):
        for seed in range(2):
            rows.append(row(seed, 0.1, attack, "none", None, None, None))
            rows.append(row(seed, 0.1, attack, "ft", 10, 0.9, 0.1 * i, trace='{"loss": [2.0, 1.0, 0.5]}'))
    return frame(rows)


@pytest.fixture(autouse=True)
def quick(monkeypatch, sketched):
    """Triggers are drawn by another test; here they are missing in no page, so that each counts as whole."""
    monkeypatch.setattr("bdjax.reporting.details._triggers", lambda *_: iter(()))


def pages(out):
    return {path.name: path.read_text() for path in (out / "cells").glob("*.html")}


def test_every_training_configuration_has_a_page_that_the_index_leads_to(many, tmp_path):
    text = html.build(tmp_path, many).read_text()
    found = pages(tmp_path)
    assert len(found) == 5 and set(re.findall(r'href="cells/([^"]+)"', text)) == set(found)
    assert 'id="effect"' not in text and 'id="pages"' in text
    for one in scenarios(many):
        page = found[f"{one.name}.html"]
        assert f"<h1>{one.title}</h1>" in page and all(f'id="{key}"' in page for key in ("all", "effect", "course", "provenance"))
        assert page.count("Full configuration of every cell (2)") == 1 and 'href="../index.html"' in page
    for attack in ATTACKS:  # each row of the table leads to its own page
        name = next(name for name in found if name.startswith(attack))
        assert re.search(rf'<td data-v="{attack}"><a href="cells/{name}">{attack}</a>', text)


def test_only_pages_whose_records_changed_are_drawn_again(many, tmp_path):
    html.build(tmp_path, many)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    drawn = []
    html.build(tmp_path, many, track=lambda steps, total: drawn.append(total) or steps)
    assert not drawn
    newer = many.with_columns(created=pl.when(pl.col("attack") == "sig").then(pl.lit("later")).otherwise(pl.col("created")))
    html.build(tmp_path, newer, track=lambda steps, total: drawn.append(total) or steps)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert drawn == [1] and [name for name in before if before[name] != after[name]] == [n for n in before if n.startswith("sig")]


def test_pages_of_what_is_gone_go(many, tmp_path):
    html.build(tmp_path, many)
    few = html.build(tmp_path, many.filter(pl.col("attack") != "bpp")).read_text()
    assert not pages(tmp_path) and 'id="effect"' in few  # four fit into the index


def test_a_page_with_something_missing_is_tried_again(many, tmp_path, monkeypatch):
    from bdjax.reporting.details import Drawing

    missing = [Drawing("triggers-digits", "sig on digits", None, "the data are elsewhere")]
    monkeypatch.setattr("bdjax.reporting.details._triggers", lambda *_: iter(missing))
    html.build(tmp_path, many)
    assert all("the data are elsewhere" in text for text in pages(tmp_path).values())
    monkeypatch.setattr("bdjax.reporting.details._triggers", lambda *_: iter(()))
    html.build(tmp_path, many)
    assert not any("the data are elsewhere" in text for text in pages(tmp_path).values())


def test_the_index_alone(many, tmp_path):
    text = html.build(tmp_path, many, pages=False).read_text()
    assert not (tmp_path / "cells").exists() and "cells/" not in text and 'id="effect"' not in text
    assert "Full configuration of every cell (10)" in text


@pytest.mark.slow  # several processes, each of which starts JAX
def test_several_processes_draw_the_same_pages(many, tmp_path, monkeypatch):
    monkeypatch.undo()  # other processes do not see what was patched here: they draw
    html.build(tmp_path / "two", many, processes=2)
    html.build(tmp_path / "one", many)
    assert pages(tmp_path / "one") == pages(tmp_path / "two")


def test_pages_in_an_object_store(many):
    from bdjax.store import location

    place = location.locate("memory://pages/run")
    drawn = []
    count = lambda steps, total: drawn.append(total) or steps  # noqa: E731
    html.build(place, many, track=count)
    html.build(place, many, track=count)
    assert drawn == [5] and len(location.files(place / "cells", "*.html")) == 5
    html.build(place, many.filter(pl.col("attack") != "bpp"), track=count)
    assert not location.files(place / "cells", "*.html")
