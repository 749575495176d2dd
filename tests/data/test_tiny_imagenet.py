"""Tiny-ImageNet: labels in sorted WordNet order whatever the order of the files, greyscale to RGB, annotations checked."""

import zipfile

import numpy as np
import pytest

from bdjax.data import load, spec
from bdjax.data.images import decoded
from bdjax.data.tiny_imagenet import ARCHIVE, HOME, TINY_IMAGENET, WNIDS
from bdjax.errors import UserError
from tests.data import made_up

FIRST = f"{HOME}/train/n01443537/"


@pytest.fixture
def folder(tmp_path):
    made_up.tiny_imagenet(tmp_path / "data" / "tiny-imagenet")
    return tmp_path / "data" / "tiny-imagenet"


@pytest.fixture(params=["official", "subset"])
def accepted(request, folder, monkeypatch):
    """Declares the archive as it is now to be the right one, and loads it."""

    def accepted():
        made_up.declare(monkeypatch, "tiny_imagenet", request.param, folder)
        return load("tiny_imagenet", folder.parent)

    return accepted


def test_labels_are_ranks_and_rows_keep_the_order_of_the_archive(folder, accepted):
    dataset = accepted()
    assert dataset.train.labels.tolist() == [label for label in range(199, -1, -1) for _ in range(2)]
    assert dataset.test.labels.tolist() == list(range(200))
    with zipfile.ZipFile(folder / ARCHIVE) as archive:
        wnids = archive.read(f"{HOME}/wnids.txt").decode().split()
        entries = [name for name in archive.namelist() if "/train/" in name and name.endswith(".JPEG")]
        assert wnids[0] == "n12267677" and "n12267677" in entries[0]  # label 199, line 0
        for row in (0, 1, 399):
            np.testing.assert_array_equal(dataset.train.images[row], decoded(archive.read(entries[row]), (64, 64, 3)))
    grey = dataset.train.images[1]
    assert grey.shape == (64, 64, 3) and (grey == grey[..., :1]).all()


def _edit(entry, old, new):
    return lambda name, data: [(name, data.replace(old, new) if name == entry else data)]


VAL = f"{HOME}/val/val_annotations.txt"


@pytest.mark.parametrize(
    "change, message",
    [
        (_edit(f"{HOME}/wnids.txt", b"n01443537\n", b""), "wnids.txt does not hold the 200 known ids: n01443537 differs"),
        (_edit(f"{HOME}/wnids.txt", b"n01443537", b"n01443538"), "n01443537 differs"),
        (lambda name, data: [] if name.endswith("wnids.txt") else [(name, data)], f"lacks {HOME}/wnids.txt"),
        (
            lambda name, data: [(name.replace(FIRST + "images/n01443537_1", FIRST + "images/n02124075_1"), data)],
            "its name n02124075",
        ),
        (lambda name, data: [(name.replace("train/n01443537", "train/n00000001"), data)], "with a known id"),
        (lambda name, data: [] if name == FIRST + "images/n01443537_1.JPEG" else [(name, data)], "399 rows, expected 400"),
        (_edit(VAL, b"val_3.JPEG\tn01644900", b"val_3.JPEG\tn00000001"), "val_3.JPEG the id 'n00000001', which is none of"),
        (_edit(VAL, b"val_3.JPEG", b"val_4.JPEG"), "lists .*val_4.JPEG twice .labels 3 and 4"),
        (_edit(VAL, b"val_199.JPEG", b"val_200.JPEG"), "does not list .*val_199.JPEG, which"),
        (_edit(VAL, b"val_3.JPEG\tn01644900", b"val_3.JPEG\tn01443537"), "in the test split class 0 has 2 rows, expected 1"),
        (lambda name, data: [] if name.endswith("val_5.JPEG") else [(name, data)], "val_5.JPEG, which the archive does not hold"),
    ],
)
def test_wrong_annotations_are_named(folder, accepted, change, message):
    made_up.rewrite(folder / ARCHIVE, change)
    with pytest.raises(UserError, match=message):
        accepted()


def test_constants():
    facts = spec("tiny_imagenet")
    assert facts.mean == (0.4802, 0.4481, 0.3975) and facts.std == (0.2302, 0.2265, 0.2262)
    assert facts.pad == 4 and facts.flip is False and facts.image_shape == (64, 64, 3)
    assert len(set(facts.class_names)) == len(set(WNIDS)) == facts.classes == 200 and list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], facts.class_names[0], facts.class_names[-1]) == ("n01443537", "goldfish", "acorn")
    official, subset = TINY_IMAGENET.editions
    assert sum(official.counts["train"]) == 100_000 and sum(official.counts["test"]) == 10_000
    assert sum(subset.counts["train"]) == 12_800 and sum(subset.counts["test"]) == 3_200
