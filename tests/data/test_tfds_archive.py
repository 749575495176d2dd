"""The same rows through tensorflow-datasets: array_record files, archive order, no TensorFlow."""

import io
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from bdjax.data import cifar10, cifar100, load
from bdjax.data.table import DATASETS
from bdjax.errors import UserError
from tests.data import layouts, made_up

tfds = pytest.importorskip("tensorflow_datasets")


def packed(folder, form, rows):
    """The pickled archive of a release; returns {split: rows per class}."""
    files, _, labels = layouts.cifar_python(form, rows)
    layouts.tar(folder / form.archive, form.home, files)
    return {split: np.bincount(labels[split], minlength=form.spec.classes) for split in labels}


def written(folder, made, name):
    layouts.write(folder, made[0])
    return {split: np.bincount(made[2][split], minlength=DATASETS[name].spec.classes) for split in made[2]}


MADE = {
    ("cifar10", "official"): made_up.cifar10_binary,
    ("cifar10", "jpeg"): made_up.cifar10_jpeg,
    ("cifar10", "python"): lambda folder: packed(folder, cifar10.PYTHON, 12),
    ("cifar100", "official"): lambda folder: packed(folder, cifar100.PYTHON, 100),
    ("svhn", "official"): lambda folder: written(folder, layouts.svhn(), "svhn"),
    ("mnist", "official"): lambda folder: written(folder, layouts.mnist(True), "mnist"),
    ("fashion_mnist", "official"): lambda folder: written(folder, layouts.mnist(True), "fashion_mnist"),
    ("gtsrb", "official"): lambda folder: made_up.gtsrb(folder, sizes=(25, 60)),
    ("gtsrb", "32x32"): made_up.gtsrb,
    ("tiny_imagenet", "official"): made_up.tiny_imagenet,
    ("tiny_imagenet", "subset"): made_up.tiny_imagenet,
}


def test_every_edition_is_here():
    assert set(MADE) == {(n, e.name) for n, source in DATASETS.items() if source.rows is None for e in source.editions}


@pytest.mark.parametrize("name, edition", list(MADE))
def test_rows_equal_those_of_the_archive(name, edition, tmp_path, monkeypatch):
    folder = tmp_path / "data" / DATASETS[name].folder
    counts = MADE[name, edition](folder)
    if name in ("cifar100", "svhn", "mnist", "fashion_mnist") or edition == "python":
        monkeypatch.setitem(made_up.COUNTS, name, {split: tuple(counts[split].tolist()) for split in counts})
        source = DATASETS[name]
        editions = tuple(one._replace(first=tuple(range(len(one.first)))) for one in source.editions)
        monkeypatch.setitem(DATASETS, name, source._replace(editions=editions))
    made_up.declare(monkeypatch, name, edition, folder)
    archive, other = load(name, tmp_path / "data"), load(name, tmp_path / "data", via="tfds")
    for one, two in zip((*archive.train, *archive.test), (*other.train, *other.test), strict=True):
        np.testing.assert_array_equal(one, two)
    assert archive.digest == other.digest
    assert "tensorflow" not in sys.modules
    # what was prepared can be read by anybody: the builder finds it, every row is a JPEG or PNG of the right size, in RGB
    [home] = (tmp_path / "cache" / "tfds" / name).glob(f"{edition}-*/1.0.0")
    rows = tfds.builder_from_directory(home).as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(rows) == len(archive.train.labels)
    for row in (0, 1, len(rows) - 1):
        with Image.open(io.BytesIO(rows[row]["image"])) as image:
            grey = archive.train.images.shape[3] == 1
            assert image.format in ("JPEG", "PNG") and image.mode == ("L" if grey else "RGB")
            np.testing.assert_array_equal(
                np.asarray(image), archive.train.images[row, ..., 0] if grey else archive.train.images[row]
            )
        assert rows[row]["label"] == archive.train.labels[row]


def test_jpeg_bytes_are_kept(data_dir, tmp_path):
    import zipfile

    load("cifar10", data_dir, via="tfds")
    [home] = (tmp_path / "cache" / "tfds" / "cifar10").glob("jpeg-*/1.0.0")
    rows = tfds.builder_from_directory(home).as_data_source(split="test", decoders={"image": tfds.decode.SkipDecoding()})
    with zipfile.ZipFile(data_dir / "cifar10" / "cifar10-test.zip") as archive:
        assert [bytes(row["image"]) for row in rows] == [archive.read(name) for name in archive.namelist()]


def test_a_damaged_record_file_is_named_and_written_again(data_dir, tmp_path, capsys):
    expected = load("cifar10", data_dir, via="tfds").digest
    shutil.rmtree(tmp_path / "cache" / "datasets")
    [path] = (tmp_path / "cache" / "tfds").rglob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:40_000])
    capsys.readouterr()
    assert load("cifar10", data_dir, via="tfds").digest == expected
    message = capsys.readouterr().err
    assert "bdjax: warning:" in message and "it is prepared again" in message


def test_an_unwritable_folder_is_one_clear_line(data_dir, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "tfds").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write to the cache folder"):
        load("cifar10", data_dir, via="tfds")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda name, data: [(name.replace("cat", "cow"), data)], "expected train/<class>/<file>"),
        (lambda name, data: [(name, b"no image" if "cat/0002" in name else data)], "the train split cannot be read near row"),
    ],
)
def test_a_wrong_archive_is_no_failure_to_write(data_dir, accept, change, message):
    made_up.rewrite(data_dir / "cifar10" / "cifar10-train.zip", change)
    accept()
    with pytest.raises(UserError, match=message):
        load("cifar10", data_dir, via="tfds")
