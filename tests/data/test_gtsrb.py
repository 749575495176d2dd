"""GTSRB: both editions by one path, annotations checked against folders and files."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from bdjax.data import load, spec
from bdjax.data.gtsrb import GTSRB, TEST, TRAIN, TRUTH
from bdjax.errors import UserError
from tests.data import made_up

CLASS_1 = "GTSRB/Final_Training/Images/00001/"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "gtsrb"


@pytest.fixture
def small(folder, monkeypatch):
    """The 32x32 edition; returns a function that declares the archives as they are now to be right, and loads them."""
    made_up.gtsrb(folder)

    def accepted():
        made_up.declare(monkeypatch, "gtsrb", "32x32", folder)
        return load("gtsrb", folder)

    return accepted


def test_images_of_any_size_are_scaled_as_a_whole(folder, monkeypatch):
    pixels = made_up.gtsrb(folder, sizes=(25, 80))
    made_up.declare(monkeypatch, "gtsrb", "official", folder)
    dataset = load("gtsrb", folder.parent)
    with zipfile.ZipFile(folder / TRAIN) as archive:
        entries = [name for name in archive.namelist() if name.endswith(".ppm")]
    assert dataset.train.images.shape == (len(entries), 32, 32, 3)
    for row in (0, 17, len(entries) - 1):
        expected = Image.fromarray(pixels[entries[row]]).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.train.images[row], np.asarray(expected))
        assert dataset.train.labels[row] == int(entries[row].split("/")[3])
    assert dataset.test.labels.tolist() == [number * 7 % 43 for number in range(43)]


def test_the_small_edition_keeps_its_pixels_and_the_order_of_the_archive(folder, small, tmp_path):
    dataset = small()
    with zipfile.ZipFile(folder / TRAIN) as archive:
        assert archive.infolist()[1].compress_type == zipfile.ZIP_LZMA
    pixels = list(made_up.gtsrb(tmp_path / "again").values())
    rows = len(dataset.train.labels)
    np.testing.assert_array_equal(dataset.train.images, pixels[:rows])
    np.testing.assert_array_equal(dataset.test.images, pixels[rows:])


def test_the_small_edition_refuses_another_size(folder, small):
    def wide(name, data):
        return [(name, made_up.image(np.zeros((32, 33, 3), np.uint8), "PPM") if name == CLASS_1 + "00000_00000.ppm" else data)]

    made_up.rewrite(folder / TRAIN, wide)
    with pytest.raises(UserError, match=r"an image is \[32, 33, 3\], expected \[32, 32, 3\]"):
        small()


def _edit(entry, old, new):
    def change(name, data):
        if name != entry:
            return [(name, data)]
        assert old in data
        return [(name, data.replace(old, new))]

    return change


def _without(entry):
    return lambda name, data: [] if name == entry else [(name, data)]


@pytest.mark.parametrize(
    "file, change, message",
    [
        (TRAIN, _edit(CLASS_1 + "GT-00001.csv", b"26;1\r\n", b"26;2\r\n"), "gives 00000_00000.ppm the class 2, its folder 1"),
        (TRAIN, _edit(CLASS_1 + "GT-00001.csv", b"26;1\r\n", b"26;43\r\n"), "the class '43'; allowed are 0 to 42"),
        (TRAIN, _edit(CLASS_1 + "GT-00001.csv", b"00000_00001.ppm", b"00000_00000.ppm"), "lists .*00000_00000.ppm twice"),
        (TRAIN, _edit(CLASS_1 + "GT-00001.csv", b"00000_00001.ppm", b"00000_00009.ppm"), "does not list .*00001.ppm, which"),
        (TRAIN, _edit(CLASS_1 + "GT-00001.csv", b"ClassId", b"Class"), "Filename and ClassId are needed"),
        (TRAIN, _without(CLASS_1 + "GT-00001.csv"), "lacks GTSRB/Final_Training/Images/00001/GT-00001.csv"),
        (TRAIN, _without(CLASS_1 + "00000_00001.ppm"), "lists .*00001/00000_00001.ppm, which the archive does not hold"),
        (TRAIN, lambda name, data: [(name.replace("Final_Training", "Training"), data)], "expected GTSRB/Final_Training/Images"),
        (TRUTH, _edit("GT-final_test.csv", b"00003.ppm", b"00004.ppm"), "GT-final_test.csv lists .*00004.ppm twice"),
        (TRUTH, _edit("GT-final_test.csv", b"00003.ppm;30;31;5;5;25;26;21\n", b""), "does not list .*00003.ppm"),
        (TRUTH, _edit("GT-final_test.csv", b"26;21\n", b"26;22\n"), "class 21 has 0 rows, expected 1, class 22 has 2 rows"),
        (TRUTH, _edit("GT-final_test.csv", b"26;21\n", b"26;\n"), "the class ''"),
        (TEST, _without("GTSRB/Final_Test/Images/00003.ppm"), "lists .*00003.ppm, which the archive does not hold"),
    ],
)
def test_wrong_annotations_are_named(folder, small, file, change, message):
    made_up.rewrite(folder / file, change)
    with pytest.raises(UserError, match=message):
        small()


def test_a_missing_row_is_found_where_images_and_annotations_agree(folder, small):
    def shorter(name, data):
        if name == CLASS_1 + "00000_00002.ppm":
            return []
        return [(name, data.replace(b"00000_00002.ppm;30;31;5;5;25;26;1\r\n", b"") if name == CLASS_1 + "GT-00001.csv" else data)]

    made_up.rewrite(folder / TRAIN, shorter)
    rows = sum(made_up.COUNTS["gtsrb"]["train"])
    with pytest.raises(UserError, match=f"train split has {rows - 1} rows, expected {rows}"):
        small()


def test_constants():
    facts = spec("gtsrb")
    assert facts.mean == (0, 0, 0) and facts.std == (1, 1, 1) and facts.pad == 4 and facts.flip is False
    assert facts.image_shape == (32, 32, 3) and len(set(facts.class_names)) == facts.classes == 43
    assert facts.class_names[14] == "stop" and facts.class_names[40] == "roundabout" and facts.class_names[13] == "give way"
    for edition in GTSRB.editions:
        assert sum(edition.counts["train"]) == 39_209 and sum(edition.counts["test"]) == 12_630
        assert edition.counts["train"][0] == 210 and edition.counts["test"][0] == 60
        assert edition.counts["train"][33] == 689 and edition.counts["train"][2] == 2250
