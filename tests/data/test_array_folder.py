"""Arrays in a folder: written and read back unchanged, or laid there by the user."""

import json

import numpy as np
import pytest

from bdjax.data import from_arrays, known, load, prepare, sizes, spec, write_arrays
from bdjax.errors import UserError

GENERATOR = np.random.default_rng(0)
IMAGES, LABELS = GENERATOR.integers(0, 256, (12, 8, 10, 1), dtype=np.uint8), np.arange(12) % 3
DATASET = from_arrays(IMAGES, LABELS, IMAGES[:6], LABELS[:6], name="mine", pad=3, flip=True, class_names=("a", "b", "c"))


def test_a_round_trip_changes_nothing(tmp_path):
    folder = write_arrays(tmp_path / "deep" / "folder", DATASET)
    again = load(str(folder))
    assert again.spec == DATASET.spec and again.digest == DATASET.digest
    for one, two in zip((*DATASET.train, *DATASET.test), (*again.train, *again.test), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype
    assert spec(str(folder)) == DATASET.spec and sizes(str(folder)) == (12, 6) and known(str(folder)) == str(folder)
    assert len(load(str(folder), train_images=3).train.labels) == 3
    assert not again.train.images.flags.writeable
    assert not (tmp_path / "cache").exists()


def test_constants_and_classes_are_kept(tmp_path):
    facts = DATASET.spec._replace(mean=(0.1,), std=(0.7,), classes=5, class_names=())
    assert load(str(write_arrays(tmp_path, DATASET._replace(spec=facts)))).spec == facts


def test_it_can_be_written_again(tmp_path):
    write_arrays(tmp_path, DATASET)
    first = load(str(tmp_path))
    write_arrays(tmp_path, first._replace(train=first.test))
    again = load(str(tmp_path))
    assert len(again.train.labels) == 6 and again.digest != first.digest
    np.testing.assert_array_equal(first.train.images, IMAGES)  # what was mapped before stays


@pytest.fixture
def plain(tmp_path):
    """Four files as a user writes them: 64-bit labels, no settings."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for split, rows in (("train", 12), ("test", 6)):
        np.save(folder / f"{split}_images.npy", IMAGES[:rows])
        np.save(folder / f"{split}_labels.npy", LABELS[:rows])
    return folder


def test_files_laid_there_by_hand(plain):
    dataset = load(str(plain))
    assert dataset.spec.name == "plain" and dataset.spec.pad == 1 and dataset.spec.flip is False and dataset.spec.classes == 3
    assert dataset.train.labels.dtype == np.int32 and dataset.digest == DATASET.digest
    np.testing.assert_allclose(dataset.spec.mean, (IMAGES / 255).mean())
    with pytest.raises(UserError, match="there is nothing to prepare"):
        prepare(str(plain))
    with pytest.raises(UserError, match="no archives to read via 'tfds'"):
        load(str(plain), via="tfds")


def _save(file, array):
    return lambda folder: np.save(folder / file, array, allow_pickle=True)


def _say(**settings):
    return lambda folder: (folder / "dataset.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _save("train_images.npy", IMAGES / 255),
            r"plain/train_images.npy are float64; uint8 .* from 0.* to 1: np.round\(255 \* images\)",
        ),
        (_save("train_labels.npy", LABELS[:5]), "plain: labels has 5 rows, images 12"),
        (_save("test_labels.npy", LABELS[:6] + 1), "test_labels range from 1 to 3; allowed are 0 to 2"),
        (_save("train_labels.npy", np.array([{}] * 12)), "train_labels.npy cannot be read as an array"),
        (lambda folder: (folder / "train_images.npy").write_bytes(b""), "train_images.npy cannot be read as an array"),
        (lambda folder: np.savez((folder / "train_images.npy").open("wb"), IMAGES), "train_images.npy cannot be read"),
        (lambda folder: (folder / "test_labels.npy").unlink(), "holds no data set"),
        (_say(mean=[0.1, 0.2, 0.3]), "mean has 3 numbers for 1 channels"),
        (_say(std=[0]), "std is .0.; allowed is 1 or 3 numbers > 0"),
        (_say(image_size=[8, 8]), "unknown key of .*'image_size'"),
        (_say(classes=2), "labels range from 0 to 2; allowed are 0 to 1"),
        (_say(class_names=["a"]), "class_names has 1 names for 3 classes"),
        (_say(name="digits"), "would be named digits"),
    ],
)
def test_mistakes_are_named(plain, change, message):
    change(plain)
    for call in (load, spec):
        with pytest.raises(UserError, match=message):
            call(str(plain))


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="digits is a built-in data set; give yours another name"):
        write_arrays(tmp_path, DATASET._replace(spec=DATASET.spec._replace(name="digits")))
    with pytest.raises(UserError, match="named 'a b'; in a folder the name must be a word"):
        write_arrays(tmp_path, DATASET._replace(spec=DATASET.spec._replace(name="a b")))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        write_arrays(tmp_path / "file", DATASET)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="holds folders of images"):
        write_arrays(tmp_path, DATASET)


def test_grey_arrays_get_three_channels_where_the_settings_say_so(plain):
    grey = load(str(plain))
    _say(channels=3)(plain)
    dataset = load(str(plain))
    assert dataset.spec.image_shape == (8, 10, 3) and dataset.spec.mean == grey.spec.mean * 3
    np.testing.assert_array_equal(dataset.train.images, IMAGES.repeat(3, 3))
    assert np.asarray(dataset.train.images).base is not None and dataset.digest != grey.digest
    _say(channels=1)(plain)
    assert load(str(plain)).digest == grey.digest
    for split in ("train", "test"):
        np.save(plain / f"{split}_images.npy", IMAGES[: 12 if split == "train" else 6].repeat(3, 3))
    with pytest.raises(UserError, match=r"dataset\.json: channels is 1, the images have 3"):
        load(str(plain))
