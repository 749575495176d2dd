"""CIFAR-10: facts checked on a made-up archive; equal rows through tensorflow-datasets; the real archives where they are."""

import io
import shutil
import sys
import zipfile

import numpy as np
import pytest

from bdjax.data import load
from bdjax.data.arrays import moments
from bdjax.data.cifar10 import CIFAR10
from bdjax.errors import UserError


def _rewrite(path, change):
    """Write the archive again; ``change(name, bytes)`` gives a list of entries for each."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            for new_name, new_data in change(name, data):
                archive.writestr(new_name, new_data)


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
        (lambda name, data: [(name.replace("cat/0002", "dog/9"), data)], r"rows per class of the train split are \(6, 6, 6, 5,"),
        (lambda name, data: [(name, data[:200] if "cat/0002" in name else data)], "row 20 of the train split cannot be read"),
        (lambda name, data: [(name, b"no image")], "row 0 of the train split cannot be read"),
        (lambda name, data: [(name.replace("cat", "cow"), data)], "expected train/<class>/<file>"),
        (_wide, r"an image is \[32, 33, 3\], expected \[32, 32, 3\]"),
    ],
)
def test_the_facts_are_checked(data_dir, accept, change, message):
    _rewrite(data_dir / "cifar10" / "cifar10-train.zip", change)
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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the tests on the real archives: decoding takes seconds."""
    return tmp_path_factory.mktemp("cache")


class TestThroughTensorflowDatasets:
    def test_rows_equal_those_of_the_archive(self, data_dir, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        archive, other = load("cifar10", data_dir), load("cifar10", data_dir, via="tfds")
        for one, two in zip((*archive.train, *archive.test), (*other.train, *other.test), strict=True):
            np.testing.assert_array_equal(one, two)
        assert archive.digest == other.digest
        assert list((tmp_path / "cache" / "tfds").rglob("*.array_record*"))
        assert "tensorflow" not in sys.modules

    def test_a_damaged_record_file_is_named_and_written_again(self, data_dir, tmp_path, capsys):
        pytest.importorskip("tensorflow_datasets")
        expected = load("cifar10", data_dir, via="tfds").digest
        shutil.rmtree(tmp_path / "cache" / "datasets")
        [path] = (tmp_path / "cache" / "tfds").rglob("*train.array_record*")
        path.write_bytes(path.read_bytes()[:40_000])
        capsys.readouterr()
        assert load("cifar10", data_dir, via="tfds").digest == expected
        message = capsys.readouterr().err
        assert "bdjax: warning:" in message and "it is prepared again" in message

    def test_an_unwritable_folder_is_one_clear_line(self, data_dir, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "tfds").write_text("not a folder")
        with pytest.raises(UserError, match="cannot write to the cache folder"):
            load("cifar10", data_dir, via="tfds")


@pytest.mark.real_data
class TestRealArchives:
    def test_rows_and_constants(self, cache):
        dataset = load("cifar10", cache=cache)
        assert dataset.train.images.shape == (50_000, 32, 32, 3) and dataset.test.images.shape == (10_000, 32, 32, 3)
        assert (np.diff(dataset.train.labels) >= 0).all()
        mean, std = moments(np.asarray(dataset.train.images))
        np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=2e-4)
        np.testing.assert_allclose(std, (0.2452, 0.2428, 0.2606), atol=2e-4)

    def test_tensorflow_datasets_gives_the_same_rows(self, cache):
        pytest.importorskip("tensorflow_datasets")
        assert load("cifar10", cache=cache, via="tfds").digest == load("cifar10", cache=cache).digest
