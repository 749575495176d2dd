"""Labels that are no class numbers, do not start at 0 or leave a class empty are one line that says what to do."""

import json

import numpy as np
import pytest

from bdjax.data import from_arrays, load, write_arrays
from bdjax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(30) % 10


def made(labels, test=None, **options):
    test = labels if test is None else test
    return from_arrays(IMAGES[: len(labels)], labels, IMAGES[: len(test)], test, **options)


@pytest.mark.parametrize(("labels", "options", "message"), [
    (LABELS + 1, {}, r"labels range from 1 to 10 and class 0 has no rows; labels start at 0: give labels - 1\."),
    (LABELS + 5, {}, "classes 0, 1, 2, 3, 4 have no rows; labels start at 0: give labels - 5"),
    (LABELS + 1, {"classes": 10}, r"labels range from 1 to 10; allowed are 0 to 9\. Labels start at 0: give labels - 1"),
    (LABELS - 1, {}, r"labels range from -1 to 8; allowed are 0 to 8\. Labels start at 0: give labels \+ 1"),
    (LABELS * 2, {}, "classes 1, 3, 5, 7, 9 and 4 more have no rows; number the classes 0 to 9"),
    (np.where(LABELS == 4, 5, LABELS), {}, r"class 4 has no rows; number the classes 0 to 8, or say .* classes=10"),
    (LABELS, {"class_names": tuple("abc")}, "class_names has 3 names for 10 classes"),
    (LABELS.astype(float), {}, r"labels are float64\[30\]; integers .* are needed\. Give labels\.astype\(int\)"),
    (LABELS + 0.5, {}, "They are not whole numbers"),
    (np.full(30, np.nan), {}, "They are not whole numbers"),
    (LABELS[:, None], {}, r"labels are int64\[30, 1\]; .* Give labels\[:, 0\]"),
    (np.eye(10)[LABELS], {}, r"one-hot: give labels\.argmax\(1\)"),
    (LABELS.astype(str), {}, "Give numbers"),
    (LABELS > 4, {}, r"labels are bool\[30\]"),
    (np.where(LABELS == 9, 2**32, LABELS), {}, "labels hold 4294967296; a label is the number of a class"),
])  # fmt: skip
def test_labels_that_are_no_class_numbers_are_refused_with_what_to_do(labels, options, message):
    with pytest.raises(UserError, match=message) as error:
        made(labels, **options)
    assert "\n" not in str(error.value)


def test_labels_of_the_test_set_are_held_to_the_same():
    with pytest.raises(UserError, match=r"test_labels range from 1 to 10; allowed are 0 to 9\. Labels start at 0"):
        made(LABELS, LABELS + 1)


def test_a_class_without_rows_that_was_asked_for_is_a_warning(capsys):
    dataset = made(LABELS + 1, classes=11)
    assert dataset.spec.classes == 11
    assert capsys.readouterr().err == (
        "bdjax: warning: labels range from 1 to 10 and class 0 has no rows; it can be neither learned nor sampled "
        "(do the labels start at 1? they should start at 0)\n"
    )
    made(np.where(LABELS == 4, 5, LABELS), classes=10, class_names=tuple("abcdefghij"))
    assert "class 4 ('e') has no rows" in capsys.readouterr().err
    made(LABELS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_integers_of_any_width_are_taken(dtype):
    assert made(LABELS.astype(dtype)).train.labels.dtype == np.int32


def test_a_folder_of_arrays_is_held_to_the_same(tmp_path, capsys):
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", IMAGES)
        np.save(tmp_path / f"{split}_labels.npy", LABELS + 1)
    with pytest.raises(UserError, match=f"{tmp_path.name}: labels range from 1 to 10 and class 0 has no rows"):
        load(str(tmp_path))
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": 11}))
    assert load(str(tmp_path)).spec.classes == 11 and "class 0 has no rows" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d._replace(train=d.train._replace(labels=LABELS - 1)), "train_labels range from -1 to 8"),
    (lambda d: d._replace(test=d.test._replace(labels=LABELS + 1)), "test_labels range from 1 to 10; allowed are 0 to 9"),
    (lambda d: d._replace(train=d.train._replace(labels=LABELS / 1)), "train_labels are float64"),
    (lambda d: d._replace(spec=d.spec._replace(class_names=("a",))), "class_names has 1 names for 10 classes"),
])  # fmt: skip
def test_what_would_not_be_read_back_is_not_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_arrays(tmp_path / "own", change(made(LABELS)))
    assert not (tmp_path / "own").exists()
