"""CIFAR-10: facts checked on made-up archives of both editions."""

import io
import zipfile

import numpy as np
import pytest

from bdjax.data import load
from bdjax.data.cifar10 import BATCHES, CIFAR10
from bdjax.errors import UserError
from tests.data import made_up


def _wide(name, data):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((32, 33, 3), np.uint8)).save(file, "JPEG")
    return [(name, file.getvalue())]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda name, data: [] if name == "train/cat/0002.jpg" else [(name, data)], "train split has 59 rows, expected 60"),
        (lambda name, data: [(name, data), ("train/cat/x.jpg", data)][: 1 + (name == "train/cat/0002.jpg")], "has 61 rows"),
        (
            lambda name, data: [(name.replace("cat/0002", "dog/9"), data)],
            "in the train split class 3 has 5 rows, expected 6, class 5 has 7 rows, expected 6",
        ),
        (lambda name, data: [(name, data[:200] if "cat/0002" in name else data)], "row 20 of the train split cannot be read"),
        (lambda name, data: [(name, b"no image")], "row 0 of the train split cannot be read"),
        (lambda name, data: [(name.replace("cat", "cow"), data)], "expected train/<class>/<file>"),
        (_wide, r"an image is \[32, 33, 3\], expected \[32, 32, 3\]"),
    ],
)
def test_the_facts_are_checked(data_dir, accept, change, message):
    made_up.rewrite(data_dir / "cifar10" / "cifar10-train.zip", change)
    accept()
    with pytest.raises(UserError, match=message):
        load("cifar10", data_dir)


def test_other_class_names_are_refused(data_dir, accept):
    (data_dir / "cifar10" / "labels.txt").write_text("a b c")
    accept()
    with pytest.raises(UserError, match=r"labels.txt names the classes a, b, c; expected airplane"):
        load("cifar10", data_dir)


def test_a_folder_entry_is_no_row(data_dir, accept):
    path = data_dir / "cifar10" / "cifar10-test.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test/", b"")
    accept()
    assert len(load("cifar10", data_dir).test.labels) == 20


def test_constants():
    spec = CIFAR10.spec
    assert spec.mean == (0.4914, 0.4822, 0.4465) and spec.std == (0.247, 0.243, 0.261)
    assert spec.pad == 4 and spec.flip is True and len(spec.class_names) == spec.classes == 10


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """Writes the binary release, with changed files, and returns (data directory, {file: records})."""

    def write(**changes):
        folder = tmp_path / "binary" / "cifar10"
        records = made_up.cifar10_binary(folder, **changes)
        made_up.declare(monkeypatch, "cifar10", "official", folder)
        return tmp_path / "binary", records

    return write


def test_the_binary_release_in_the_order_of_the_batches(binary, tmp_path):
    data_dir, records = binary()
    dataset = load("cifar10", data_dir)
    for split, rows in (("train", dataset.train), ("test", dataset.test)):
        expected = np.concatenate([records[name] for name in BATCHES[split]])
        np.testing.assert_array_equal(rows.labels, expected[:, 0])
        planes = expected[:, 1:].reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(rows.images, planes.transpose(0, 2, 3, 1))
    assert dataset.train.images[0, 0, 1, 2] == records["data_batch_1.bin"][0, 1 + 2 * 1024 + 1]  # blue, row 0, column 1
    assert (tmp_path / "cache" / "datasets" / "cifar10-official-archive" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data_batch_3.bin": None}, "lacks data_batch_3.bin"),
        ({"batches.meta.txt": b"a b"}, "batches.meta.txt names the classes a, b; expected airplane"),
        ({"data_batch_2.bin": bytes(3074)}, "data_batch_2.bin has 3,074 bytes, no multiple of the 3073"),
        ({"data_batch_2.bin": bytes([10]) + bytes(3072)}, "data_batch_2.bin holds the label 10; allowed are 0 to 9"),
        ({"data_batch_2.bin": bytes(3073)}, "train split has 49 rows, expected 60"),
        ({"data_batch_1.bin": bytes(12 * 3073)}, "class 0 has 16 rows, expected 6, class 1 has 4 rows"),
    ],
)
def test_a_wrong_batch_is_named(binary, changes, message):
    data_dir, _ = binary(**changes)
    with pytest.raises(UserError, match=message):
        load("cifar10", data_dir)


def test_bytes_that_are_no_archive_are_named(binary, monkeypatch):
    data_dir, _ = binary()
    path = data_dir / "cifar10" / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:5000])
    made_up.declare(monkeypatch, "cifar10", "official", data_dir / "cifar10")
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz cannot be read: .*; it may be incomplete: fetch it again"):
        load("cifar10", data_dir)
