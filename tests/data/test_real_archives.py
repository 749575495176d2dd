"""The real archives, whichever editions lie under BDJAX_DATA_DIR: counts, order, moments, equal rows through the builders."""

import pickle
import zipfile

import numpy as np
import pytest

from bdjax.data import archives, load, sizes
from bdjax.data.arrays import moments
from bdjax.data.cifar10 import PYTHON
from bdjax.data.gtsrb import COUNTS, GTSRB
from bdjax.data.tiny_imagenet import TINY_IMAGENET
from bdjax.errors import UserError
from tests.data.thinned import thinned

pytestmark = pytest.mark.real_data


def test_cifar10(real_cache):
    dataset = load("cifar10", cache=real_cache)
    assert dataset.train.images.shape == (50_000, 32, 32, 3) and dataset.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5_000] * 10
    mean, std = moments(np.asarray(dataset.train.images))
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=4e-4)
    np.testing.assert_allclose(std, (0.2460, 0.2432, 0.2610), atol=2e-3)  # a JPEG re-encoding is a little smoother


def test_gtsrb(real_cache):
    dataset = load("gtsrb", cache=real_cache)
    assert dataset.train.images.shape == (39_209, 32, 32, 3) and dataset.test.images.shape == (12_630, 32, 32, 3)
    counts = np.bincount(dataset.train.labels)
    assert counts[0] == 210 and tuple(counts) == COUNTS["train"] and tuple(np.bincount(dataset.test.labels)) == COUNTS["test"]
    assert (np.diff(dataset.train.labels) >= 0).all()
    assert dataset.test.labels[:5].tolist() == [16, 1, 38, 33, 11]
    # eight test images are frames of one training track of class 14
    track = {image.tobytes() for image in dataset.train.images[dataset.train.labels == 14]}
    twins = [row for row in range(12_630) if dataset.test.labels[row] == 14 and dataset.test.images[row].tobytes() in track]
    assert twins == [666, 2291, 3546, 3594, 4548, 9384, 9575, 11906]


def test_tiny_imagenet(real_cache):
    dataset = load("tiny_imagenet", cache=real_cache)
    per_class = len(dataset.train.labels) // 200
    assert per_class in {edition.counts["train"][0] for edition in TINY_IMAGENET.editions}
    assert dataset.train.images.shape == (200 * per_class, 64, 64, 3)
    assert np.bincount(dataset.train.labels).tolist() == [per_class] * 200
    names = dataset.spec.class_names
    assert names[dataset.test.labels[0]] == "go-kart" and names[dataset.test.labels[1]] == "reel"
    mean, _ = moments(np.asarray(dataset.train.images))
    np.testing.assert_allclose(mean, dataset.spec.mean, atol=0.006)
    grey = (dataset.train.images[..., 0] == dataset.train.images[..., 2]).all((1, 2))
    assert 0.01 < grey.mean() < 0.03


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "tiny_imagenet"])
def test_tensorflow_datasets_gives_the_same_rows(real_cache, name, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    cache, home = real_cache, None
    if name != "tiny_imagenet":  # which has few rows; of the others a tenth
        cache, home = tmp_path / "cache", thinned(name, tmp_path / name, monkeypatch)
    dataset = load(name, home, cache=cache)
    assert load(name, home, cache=cache, via="tfds").digest == dataset.digest
    assert sizes(name, data_dir=home, cache=cache) == (len(dataset.train.labels), len(dataset.test.labels))


def _unpacked(archive, place):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(place)


def test_gtsrb_unpacked_gives_the_rows_of_its_archives(tmp_path, monkeypatch):
    home, signs = thinned("gtsrb", tmp_path / "gtsrb", monkeypatch), tmp_path / "signs"
    for file in GTSRB.archives:
        _unpacked(home / file, signs)
    dataset = load("gtsrb", home, cache=tmp_path / "first")
    cache = tmp_path / "second"
    again = load("gtsrb", signs, cache=cache)
    assert again.digest == dataset.digest and again.spec == dataset.spec
    rows = (len(dataset.train.labels), len(dataset.test.labels))
    assert load(str(signs), cache=cache).digest == dataset.digest and sizes(str(signs), cache=cache) == rows
    assert load("gtsrb", home, cache=cache).digest == dataset.digest
    victim = next((signs / "GTSRB" / "Final_Training" / "Images" / "00042").glob("*.ppm"))
    table = victim.parent / "GT-00042.csv"
    victim.unlink()
    with pytest.raises(UserError, match=rf"GT-00042.csv lists {victim.name}, which .*00042 does not hold"):
        load("gtsrb", signs, cache=cache)
    table.unlink()
    with pytest.raises(UserError, match=r"no whole copy. gtsrb: in the train split class 42 has 23 rows, expected 24; .*"):
        load("gtsrb", signs, cache=cache)


def test_tiny_imagenet_unpacked_gives_the_rows_of_its_archive_by_class_and_name(real_cache, tmp_path):
    (file,) = TINY_IMAGENET.archives
    archive = archives.target(TINY_IMAGENET, None, tmp_path) / file
    _unpacked(archive, tmp_path)
    dataset, again = load("tiny_imagenet", cache=real_cache), load(str(tmp_path / "tiny-imagenet-200"), cache=tmp_path)
    assert again.spec == dataset.spec and again.train.labels.tolist() == sorted(dataset.train.labels)
    with zipfile.ZipFile(archive) as opened:
        names = [entry for entry in opened.namelist() if "/train/" in entry and entry.endswith(".JPEG")]
        order = sorted(range(len(names)), key=lambda row: names[row])
    np.testing.assert_array_equal(again.train.images, np.asarray(dataset.train.images)[order])
    rows = [
        {image.tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)}
        for split in (again.test, dataset.test)
    ]
    assert rows[0] == rows[1]


def test_cifar10_as_batches_gives_the_rows_that_were_written(real_cache, tmp_path):
    dataset = load("cifar10", cache=real_cache)
    planes = np.asarray(dataset.train.images).transpose(0, 3, 1, 2).reshape(50_000, -1)
    tested = np.asarray(dataset.test.images).transpose(0, 3, 1, 2).reshape(10_000, -1)
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    parts = [(planes[i::5], np.asarray(dataset.train.labels)[i::5]) for i in range(5)] + [
        (tested, np.asarray(dataset.test.labels))
    ]
    for name, (rows, told) in zip((*PYTHON.train, *PYTHON.test), parts, strict=True):
        (place / name).write_bytes(pickle.dumps({b"data": np.ascontiguousarray(rows), b"labels": told.tolist()}, 2))
    names = [name.encode() for name in dataset.spec.class_names]
    (place / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, 2))
    again = load(str(tmp_path), cache=tmp_path / "cache")
    assert again.spec == dataset.spec
    expected = np.concatenate([np.asarray(dataset.train.images)[i::5] for i in range(5)])
    np.testing.assert_array_equal(again.train.images, expected)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)
