"""Labels of points: each is there, in the axes, and none covers another or a point."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from bdjax.reporting import labels
from bdjax.reporting.figures import panels_of


def scattered(points):
    figure, panels = panels_of(1, 1, (7.4, max(3.8, 0.2 * len(points))))
    axis = panels[0][0]
    for _, x, y in points:
        axis.plot(x, y, "o", ms=6)
    axis.set(xscale="log")
    axis.margins(0.15, 0.15)
    labels.label_points(figure, axis, points)
    return figure, axis


def crowd(count):
    generator = np.random.default_rng(0)
    return [(f"method_{i}", 10 ** generator.normal(0, 0.2), float(generator.choice([0, 4, 100]))) for i in range(count)]


@pytest.mark.parametrize(
    "points",
    [[], crowd(5), crowd(25), [(f"same_{i}", 1.0, 50.0) for i in range(12)], [("alone", 2.0, 0.0)]],
    ids=["none", "few", "many", "one place", "one"],
)
def test_every_point_has_its_label_and_no_two_overlap(points):
    figure, axis = scattered(points)
    figure.draw_without_rendering()
    found = axis.findobj(Annotation)
    assert sorted(text.get_text() for text in found) == sorted(name for name, _, _ in points)
    assert all(text.xy in [(x, y) for name, x, y in points if name == text.get_text()] for text in found)
    boxes = [Text.get_window_extent(text) for text in found]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    dots = [axis.transData.transform((x, y)) for _, x, y in points]
    assert not [1 for box in boxes for dot in dots if box.contains(*dot)]


def test_a_label_that_had_to_go_far_has_a_line_to_its_point():
    _, axis = scattered([(f"same_{i}", 1.0, 50.0) for i in range(12)])
    lines = [text.arrow_patch.get_visible() for text in axis.findobj(Annotation)]
    assert any(lines) and not all(lines)
    assert not [
        text for text in scattered([("a", 1.0, 0.0), ("b", 10.0, 9.0)])[1].findobj(Annotation) if text.arrow_patch.get_visible()
    ]
