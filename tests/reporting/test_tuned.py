"""Figures of what happened while a defense ran."""

import json

import numpy as np
import polars as pl
import pytest

from bdjax.errors import UserError
from bdjax.reporting import html, images, tuned
from bdjax.results import traces
from bdjax.store import arrays


@pytest.fixture
def by_epoch(records):
    """Records of one defense with losses by epoch."""
    rows = records.filter(pl.col("attack") == "badnets", pl.col("defense") == "ft").to_dicts()
    for i, row in enumerate(rows):
        trace = {
            "loss": [2.0, 1.0 + i, 0.5],
            "shared": [0.0, None, 1.0],
            "alive": True,
            "flags": [True, False, True],
            "norm": [1.0],
        }
        row["trace"] = json.dumps(trace)
    return pl.DataFrame(rows, schema=records.schema)


def test_what_a_trace_holds_by_epoch_is_found(by_epoch):
    found = traces.courses(by_epoch.row(1, named=True))
    assert list(found) == ["loss", "shared"]
    np.testing.assert_array_equal(found["loss"], [2, 2, 0.5])
    np.testing.assert_array_equal(found["shared"], [0, np.nan, 1])
    assert traces.courses(dict(by_epoch.row(1, named=True), trace='{"loss": [1.0]}')) == {}
    assert traces.courses(dict(by_epoch.row(1, named=True), status="failed")) == {}


def test_a_panel_per_quantity_a_line_per_member_and_the_median(by_epoch):
    figure = tuned.course(by_epoch)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "shared"]
    assert len(figure.axes[0].lines) == 8 + 2  # 4 seeds at 2 ratios, and two medians
    bold = [line.get_ydata() for line in figure.axes[0].lines if line.get_linewidth() > 2]
    poisoned = by_epoch.filter(pl.col("ratio") > 0)
    middle = np.median([json.loads(trace)["loss"] for trace in poisoned["trace"]], axis=0)
    np.testing.assert_array_equal(bold[1], middle)
    with pytest.raises(UserError, match="no record tells what happened by epoch"):
        tuned.course(by_epoch.with_columns(trace=pl.lit("{}")))


def trigger(classes=12, flagged=3):
    generator = np.random.default_rng(0)
    norm = np.linspace(40, 60, classes)
    norm[flagged] = 5.0
    index = np.abs(norm - 50)
    mask, pattern = generator.uniform(size=(classes, 20, 20)), generator.uniform(size=(classes, 20, 20, 3))
    return {"mask": mask, "pattern": pattern, "norm": norm, "anomaly": index, "flagged": np.arange(classes) == flagged}


def test_recovered_triggers_come_from_the_record_and_its_arrays(by_epoch, tmp_path):
    from collections import namedtuple

    fields = trigger()
    small, large = arrays.split(namedtuple("Trace", fields)(**fields))
    assert sorted(large) == ["mask", "pattern"] and small["mask"] == {"array": [12, 20, 20]}
    row = dict(
        by_epoch.row(0, named=True), trace=json.dumps({k: v if isinstance(v, dict) else v.tolist() for k, v in small.items()})
    )
    assert arrays.read(tmp_path, row) == {} and traces.recovered(row, {}) == {}
    arrays.write(tmp_path, row["cell"], row["member"], large)
    found = traces.recovered(row, arrays.read(tmp_path, row))
    for name in fields:
        np.testing.assert_array_equal(found[name], fields[name])
    rows = images.of_recovered([("a", found), ("b", found)], tuple("abcdefghijkl"))
    pictures = [one for row in rows for one in row.pictures]
    titles = [one.text for one in pictures]
    assert len(titles) == 2 * images.SHOWN and "d\n5.0 · 45.0" in titles and not any(t.startswith("l\n") for t in titles)
    assert [one.text for one in pictures if one.marked] == ["d\n5.0 · 45.0"] * 2
    d = next(one.image for one in pictures if one.marked)
    np.testing.assert_array_equal(d, np.round(255 * found["mask"][3][..., None] * found["pattern"][3]))
    figure = images.sheet(rows)
    assert [axis.get_title() for axis in figure.axes if axis.spines["left"].get_linewidth() > 2] == ["d\n5.0 · 45.0"] * 2
    with pytest.raises(UserError, match="no record holds recovered triggers"):
        images.of_recovered([])


def test_damaged_arrays_are_named(by_epoch, tmp_path):
    row = by_epoch.row(0, named=True)
    arrays.write(tmp_path, row["cell"], row["member"], {"mask": np.arange(9000.0)})
    path = arrays.place(tmp_path, row["cell"], row["member"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged"):
        arrays.read(tmp_path, row)


def test_the_page_shows_them(by_epoch, tmp_path, sketched):
    fields = trigger(4, 2)
    small = {k: v.tolist() for k, v in fields.items()}
    found = by_epoch.with_columns(trace=pl.lit(json.dumps({"loss": [1.0, 0.5, 0.2], **small})))
    text = html.build(tmp_path, found).read_text()
    assert 'id="course"' in text and 'id="recovered"' in text and "flagged classes framed in colour" in text
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"course-ft-badnets.png", "recovered-ft-badnets.png"} <= names
