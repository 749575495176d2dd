"""The real archives, whichever editions lie under BDJAX_DATA_DIR: counts, order, moments, equal rows through the builders."""

import numpy as np
import pytest

from bdjax.data import DATASETS, load, sizes
from bdjax.data.arrays import moments
from bdjax.data.gtsrb import COUNTS
from bdjax.data.tiny_imagenet import TINY_IMAGENET

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


@pytest.mark.parametrize("name", [name for name, source in DATASETS.items() if source.rows is None])
def test_tensorflow_datasets_gives_the_same_rows(real_cache, name):
    pytest.importorskip("tensorflow_datasets")
    dataset = load(name, cache=real_cache)
    assert load(name, cache=real_cache, via="tfds").digest == dataset.digest
    assert sizes(name, cache=real_cache) == (len(dataset.train.labels), len(dataset.test.labels))
