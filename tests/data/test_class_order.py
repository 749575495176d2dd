"""Numbered class folders are the classes of those numbers; other names keep the order of their texts."""

import numpy as np
import pytest
from PIL import Image

from bdjax.data import cache, image_folder, load, spec
from bdjax.data.class_order import by_value, in_order
from bdjax.errors import UserError


@pytest.mark.parametrize(("names", "order"), [
    (["10", "2", "0", "1", "11"], ["0", "1", "2", "10", "11"]),
    (["00010", "00002", "00000"], ["00000", "00002", "00010"]),
    (["cat", "10", "9"], ["10", "9", "cat"]),  # mixed: text
    (["b10", "b9", "a"], ["a", "b10", "b9"]),
    (["1", "01", "2"], ["01", "1", "2"]),
    (["-1", "10", "9"], ["-1", "10", "9"]),  # "-1" is a text
    (["٣", "10", "9"], ["10", "9", "٣"]),
    ([], []),
])  # fmt: skip
def test_names_that_are_all_whole_numbers_are_ordered_by_value(names, order):
    assert in_order(names) == order and in_order(reversed(names)) == order


def test_only_an_order_that_changed_is_another():
    assert by_value(["2", "10"]) and not by_value(["02", "10"]) and not by_value(["a", "10"]) and not by_value(["0", "1"])


@pytest.fixture
def numbered(tmp_path):
    """Folders 0 … 11; the images of class c are all of the grey value 10 c."""
    for split in ("train", "test"):
        for label in range(12):
            place = tmp_path / "own" / split / str(label)
            place.mkdir(parents=True)
            Image.fromarray(np.full((4, 4, 3), 10 * label, np.uint8)).save(place / "a.png")
    return tmp_path / "own"


def test_a_numbered_folder_is_the_class_of_its_number(numbered):
    dataset = load(str(numbered))
    assert spec(str(numbered)).class_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(dataset.train.images[:, 0, 0, 0], 10 * np.asarray(dataset.train.labels))
    np.testing.assert_array_equal(dataset.test.images[:, 0, 0, 0], 10 * np.asarray(dataset.test.labels))


def test_a_cache_in_the_order_of_texts_is_not_read_with_the_new_one(numbered, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "in_order", sorted)
        patch.setattr(image_folder, "by_value", lambda names: False)
        old = load(str(numbered))
        assert old.spec.class_names[2] == "10" and int(old.train.images[2, 0, 0, 0]) == 100
    new = load(str(numbered))
    assert int(new.train.images[2, 0, 0, 0]) == 20 and new.digest != old.digest
    assert len(list((cache.cache_root() / "datasets").iterdir())) == 2


def test_a_cache_whose_order_did_not_change_is_still_read(numbered, monkeypatch):
    for split in ("train", "test"):
        for label in range(12):
            (numbered / split / str(label)).rename(numbered / split / f"{label:05d}")
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "in_order", sorted)
        old = load(str(numbered))
    monkeypatch.setattr(image_folder, "decoded", None)  # would fail
    assert load(str(numbered)).digest == old.digest


def test_train_and_test_must_name_the_same_numbers(numbered):
    (numbered / "test" / "3").rename(numbered / "test" / "03")
    with pytest.raises(UserError, match="class '3' lies in train/ and not in test/"):
        load(str(numbered))
