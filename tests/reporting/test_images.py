"""Figures of images: what they show is what they were given, and no label is cut off or lies over another's image."""

import base64
import io
import itertools

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from bdjax.reporting import images

LONG = "no overtaking by lorries of more than three and a half tonnes"


def labels(figure):
    """(text, its box) of every text that is drawn, in shares of the figure."""
    figure.draw_without_rendering()
    whole = figure.bbox
    found = [text for text in figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]
    return [(text, text.get_window_extent().transformed(mpl.transforms.Affine2D().scale(1 / whole.width, 1 / whole.height)))
            for text in found]  # fmt: skip


def test_triggers_are_shown_as_originals_triggered_and_ten_times_the_change():
    pictures = np.full((2, 4, 4, 3), 100, np.uint8)
    triggered = pictures.copy()
    triggered[:, 3, 3] = (95, 107, 200)  # changes of 5, 7 and 100
    rows = images.of_triggers(pictures, {"patch": triggered}, ["cat", "dog"])
    assert [row.name for row in rows] == ["original", "patch", "change × 10"]
    assert [one.text for row in rows for one in row.pictures] == ["cat", "dog", "", "", "", ""]
    shown = [one.image for row in rows for one in row.pictures]
    np.testing.assert_array_equal(shown[1], pictures[1])
    np.testing.assert_array_equal(shown[3], triggered[1])
    assert shown[5][3, 3].tolist() == [77, 197, 255] and (np.delete(shown[5].reshape(16, 3), 15, axis=0) == 127).all()
    figure = images.sheet(rows)
    for axis, image in zip(figure.axes, shown, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
    assert {"original", "patch", "change × 10", "cat", "dog"} <= {text.get_text() for text, _ in labels(figure)}


def test_grey_images_are_drawn_and_embedded_too():
    pictures = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    rows = images.of_triggers(pictures, {"same": pictures})
    assert images.sheet(rows).axes[0].images[0].get_array().shape == (4, 4)
    for image in (pictures[0], np.repeat(pictures[0], 3, -1)):
        head, _, data = images.embedded(image).partition(",")
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).reshape(image.shape), image)


@pytest.mark.parametrize("count", [1, 8])
def test_nothing_is_cut_off_however_long_its_name(count):
    pictures = np.zeros((count, 4, 4, 3), np.uint8)
    triggers = images.of_triggers(pictures, {"an_attack_of_a_very_long_name\nseed 12": pictures}, [LONG] * count)
    found = {"norm": np.arange(count), "anomaly": np.arange(count), "flagged": np.arange(count) == 0}
    found |= {"mask": np.ones((count, 4, 4)), "pattern": np.ones((count, 4, 4, 3))}
    recovered = images.of_recovered([("10 % poisoned\nseed 12", found)] * 2, (LONG,) * count)
    for figure in map(images.sheet, (triggers, recovered)):
        boxes = labels(figure)
        assert len(boxes) >= count + 1
        for text, box in boxes:
            assert min(box.x0, box.y0) >= 0 and max(box.x1, box.y1) <= 1, text.get_text()
        titles = sorted(
            (box for text, box in boxes if text.get_text().startswith("no")), key=lambda box: (-round(box.y0, 2), box.x0)
        )
        for a, b in itertools.pairwise(titles):
            assert a.x1 <= b.x0 or a.y0 > b.y0
        for axis in figure.axes:
            size = axis.get_window_extent().size / figure.get_dpi()
            np.testing.assert_allclose(size, size[0])  # square, and not squeezed
            assert size[0] > 0.6


def test_a_name_that_is_too_long_ends_with_an_ellipsis():
    assert images.wrapped("cat", 1, 8) == "cat"
    assert images.wrapped("speed limit 30", 0.95, 8) == "speed limit\n30"
    assert images.wrapped(LONG, 0.95, 8).endswith("…") and images.wrapped(LONG, 0.95, 8).count("\n") == 1
