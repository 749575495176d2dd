"""A folder of images per class as a data set: order, facts, cache, and every mistake named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bdjax.data import known, load, prepare, sizes, spec
from bdjax.errors import UserError

CLASSES = ("bird", "cat", "dog")
KINDS = ("a.png", "b.PPM", "c.bmp", "d.webp")
NUMBERS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 16, 16, 3), dtype=np.uint8)  # split, class, image


@pytest.fixture
def pets(tmp_path):
    """pets/<split>/<class>/: four training images in lossless formats, two test images, written in no sorted order."""
    folder = tmp_path / "pets"
    for split, rows in enumerate((4, 2)):
        for label in (2, 0, 1):
            place = folder / ("train", "test")[split] / CLASSES[label]
            place.mkdir(parents=True)
            for row in reversed(range(rows)):
                options = {"lossless": True} if row == 3 else {}
                Image.fromarray(NUMBERS[split, label, row]).save(place / KINDS[row], **options)
    (folder / "README.txt").write_text("not an image")
    (folder / "train" / ".hidden").write_text("")
    (folder / "train" / "cat" / ".DS_Store").write_text("")
    return folder


def test_rows_and_facts(pets):
    dataset = load(str(pets))
    np.testing.assert_array_equal(dataset.train.images, NUMBERS[0].reshape(-1, 16, 16, 3))
    np.testing.assert_array_equal(dataset.test.images, NUMBERS[1, :, :2].reshape(-1, 16, 16, 3))
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and dataset.train.labels.dtype == np.int32
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    facts = dataset.spec
    assert facts == spec(str(pets)) and hash(facts)
    assert facts.name == "pets" and facts.classes == 3 and facts.class_names == CLASSES
    assert facts.image_shape == (16, 16, 3) and facts.pad == 2 and facts.flip is False
    np.testing.assert_allclose(facts.mean, (NUMBERS[0] / 255).mean((0, 1, 2, 3)))
    np.testing.assert_allclose(facts.std, (NUMBERS[0] / 255).std((0, 1, 2, 3)))
    assert sizes(str(pets)) == (12, 6) and sizes(str(pets), train_images=3) == (3, 6)
    assert known(str(pets)) == str(pets)
    reduced = load(str(pets), train_images=6, test_images=3)
    assert np.bincount(reduced.train.labels).tolist() == [2, 2, 2] and np.bincount(reduced.test.labels).tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"train_images is 13; .*pets allows 3 .* to 12"):
        load(str(pets), train_images=13)
    with pytest.raises(UserError, match=r"test_images is 7; .* to 6"):
        sizes(str(pets), test_images=7)


def test_relative_paths_and_the_home_folder(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    monkeypatch.setenv("HOME", str(pets.parent))
    assert spec("pets") == spec("./pets") == spec("~/pets") == spec(str(pets))
    monkeypatch.chdir(pets)
    assert spec(".").name == "pets"


def test_it_is_decoded_once_and_again_when_a_file_changes(pets, tmp_path, monkeypatch):
    first = load(str(pets))
    assert isinstance(first.train.images, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr("bdjax.data.own.decoded", None)  # would fail
        assert load(str(pets)).digest == first.digest and spec(str(pets)) == first.spec
        moved = tmp_path / "moved"
        shutil.copytree(pets, moved)
        assert load(str(moved)).digest == first.digest and spec(str(moved)).name == "moved"
    Image.fromarray(255 - NUMBERS[0, 1, 2]).save(pets / "train" / "cat" / "c.bmp")
    again = load(str(pets))
    np.testing.assert_array_equal(again.train.images[6], 255 - NUMBERS[0, 1, 2])
    assert again.digest != first.digest and again.spec.mean != first.spec.mean
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 2
    (pets / "test" / "dog" / "a.png").rename(pets / "test" / "dog" / "z.png")
    assert load(str(pets)).digest != again.digest  # the order of the rows


def test_prepare_and_a_damaged_cache(pets, capsys):
    place = prepare(str(pets))
    assert place.name.startswith("folder-")
    first = load(str(pets)).digest
    (place / "train_images.npy").write_bytes(b"")
    assert load(str(pets)).digest == first and "is damaged" in capsys.readouterr().err
    (place / "manifest.json").write_text("{")
    assert sizes(str(pets)) == (12, 6) and "is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no archives to read via 'tfds'"):
        load(str(pets), via="tfds")


def test_greyscale_images_become_rgb_and_colour_becomes_grey_where_one_channel_is_wanted(pets):
    Image.fromarray(NUMBERS[0, 0, 0, ..., 0]).save(pets / "train" / "bird" / "a.png")
    images = load(str(pets)).train.images
    np.testing.assert_array_equal(images[0], NUMBERS[0, 0, 0, ..., :1].repeat(3, 2))
    (pets / "dataset.json").write_text('{"channels": 1}')
    grey = load(str(pets))
    assert grey.spec.image_shape == (16, 16, 1) and len(grey.spec.mean) == 1
    np.testing.assert_array_equal(grey.train.images[0, ..., 0], NUMBERS[0, 0, 0, ..., 0])
    weighed = NUMBERS[0, 0, 2] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey.train.images[2, ..., 0], weighed, atol=1)


def test_settings_are_honoured(pets):
    settings = {"image_size": [8, 12], "flip": True, "pad": 3, "name": "animals"}
    plain = load(str(pets))
    (pets / "dataset.json").write_text(json.dumps(settings))
    dataset = load(str(pets))
    assert dataset.spec[:3] == ("animals", (8, 12, 3), 3) and dataset.spec.flip is True and dataset.spec.pad == 3
    expected = Image.fromarray(NUMBERS[0, 1, 0]).resize((12, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.train.images[4], np.asarray(expected))
    (pets / "dataset.json").write_text(json.dumps({"image_size": [8, 12]}))
    assert spec(str(pets)).pad == 1 and spec(str(pets)).name == "pets"
    (pets / "dataset.json").unlink()
    assert load(str(pets)).digest == plain.digest


def test_the_name_of_a_folder_becomes_a_word_and_no_built_in_one(pets):
    other = pets.rename(pets.parent / "my pets (2)")
    assert spec(str(other)).name == "my_pets_2_"
    taken = other.rename(pets.parent / "cifar10")
    for call in (spec, load, prepare, sizes):
        with pytest.raises(UserError, match=r"would be named cifar10, as a built-in data set is; put another \"name\" into"):
            call(str(taken))


def _another_size(pets):
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(pets / "train" / "dog" / "b.PPM", "PPM")


def _another_size_in_test(pets):
    Image.fromarray(np.zeros((16, 15, 3), np.uint8)).save(pets / "test" / "bird" / "a.png")


def _put(path, text):
    def change(pets):
        (pets / path).parent.mkdir(parents=True, exist_ok=True)
        (pets / path).write_text(text)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _another_size,
            r"dog/b.PPM is 20x24 \(height x width\), .*bird/a.png is 16x16; .* put {.image_size.: \[16, 16\]} into dataset.json",
        ),
        (_another_size_in_test, r"test/bird/a.png is 16x15 .*, .*train/bird/a.png is 16x16"),
        (_put("train/cat/a.png", "no image"), "train/cat/a.png cannot be read as an image"),
        (_put("train/cat/notes.txt", ""), "notes.txt is no image file; allowed are .png, .jpg"),
        (_put("train/notes.txt", ""), "train/notes.txt lies beside the class folders"),
        (lambda pets: (pets / "train" / "cat" / "more").mkdir(), "cat/more is no image file"),
        (lambda pets: (pets / "train" / "cow").mkdir(), "class 'cow' lies in train/ and not in test/"),
        (lambda pets: shutil.rmtree(pets / "train" / "cat"), "class 'cat' lies in test/ and not in train/"),
        (lambda pets: [file.unlink() for file in (pets / "test" / "cat").iterdir()], "test/cat holds no image"),
        (lambda pets: shutil.rmtree(pets / "test"), r"holds train/ and no test/: .* needs train/<class>/<image> and test/"),
        (
            lambda pets: [shutil.rmtree(pets / s / c) for s in ("train", "test") for c in CLASSES[1:]],
            "at least 2 classes; train/ holds 1",
        ),
        (_put("dataset.json", "{"), "dataset.json cannot be read as JSON"),
        (_put("dataset.json", "[]"), "dataset.json holds no JSON object"),
        (_put("dataset.json", '{"image_sise": [8, 8]}'), "unknown key of .*'image_sise'.*Did you mean 'image_size'"),
        (_put("dataset.json", '{"mean": [0.5]}'), "unknown key of .*'mean'"),
        (_put("dataset.json", '{"image_size": 8}'), r"image_size is 8; allowed is \[height, width\]"),
        (_put("dataset.json", '{"image_size": [8, 0]}'), r"image_size is \[8, 0\]"),
        (_put("dataset.json", '{"flip": 1}'), "flip is 1; allowed is true or false"),
        (_put("dataset.json", '{"pad": -1}'), "pad is -1"),
        (_put("dataset.json", '{"pad": true}'), "pad is True"),
        (_put("dataset.json", '{"name": "a/b"}'), "name is 'a/b'"),
        (_put("train_images.npy", ""), "holds folders .train, test. and arrays .train_images.npy.; only one kind"),
    ],
)
def test_mistakes_are_named(pets, change, message):
    change(pets)
    with pytest.raises(UserError, match=message):
        load(str(pets))


def test_a_name_that_is_neither(tmp_path):
    for call in (known, spec, load, sizes, prepare):
        with pytest.raises(UserError, match=r"unknown dataset 'gtsrp'; allowed: digits, .* mean 'gtsrb'\? .* path of a folder"):
            call("gtsrp")
        with pytest.raises(UserError, match="holds no data set"):
            call(str(tmp_path))
    assert known("gtsrb") == "gtsrb"


@pytest.mark.parametrize("other", ["val", "valid", "validation", "Test", "testing"])
def test_a_validation_folder_stands_for_the_test_folder_where_there_is_none(pets, other):
    first = load(str(pets))
    (pets / "test").rename(pets / other)
    again = load(str(pets))
    assert again.digest == first.digest and again.spec == first.spec and known(str(pets)) == str(pets)


def test_the_test_folder_goes_before_the_others_unless_it_has_no_class(pets):
    first = load(str(pets)).digest
    shutil.copytree(pets / "train", pets / "val")
    assert load(str(pets)).digest == first
    shutil.rmtree(pets / "test")
    (pets / "test").mkdir()
    (pets / "test" / "0001.png").write_bytes(b"no label is known")
    np.testing.assert_array_equal(load(str(pets)).test.images, load(str(pets)).train.images)


def test_junk_between_the_images_is_passed_over(pets):
    first = load(str(pets)).digest
    for place in (pets, pets / "train", pets / "train" / "cat", pets / "test" / "dog"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "ehthumbs.db"):
            (place / name).write_bytes(b"junk")
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
            (place / name).mkdir()
            (place / name / "a.png").write_bytes(b"junk")
    assert load(str(pets)).digest == first


def test_deep_images_of_a_folder_are_scaled_by_what_the_settings_say(pets):
    ramp = np.tile(np.arange(16, dtype=np.uint16) * 273, (16, 1))  # 12 bits in 16
    for split, rows in (("train", 4), ("test", 2)):
        for name in CLASSES:
            for row in range(rows):
                (pets / split / name / KINDS[row]).unlink()
                Image.fromarray(ramp).save(pets / split / name / f"{row}.png")
    assert load(str(pets)).train.images.max() == 16  # of the 16 bits that the files have
    (pets / "dataset.json").write_text('{"value_range": [0, 4095], "channels": 1}')
    np.testing.assert_array_equal(load(str(pets)).train.images[5, 0, :, 0], np.arange(16) * 17)


def test_a_file_that_is_no_folder_and_no_archive(pets):
    for call in (known, spec, load, sizes, prepare):
        with pytest.raises(
            UserError, match=r"README\.txt is a file, and no archive whose layout is known; unpack it and name the fold"
        ):
            call(str(pets / "README.txt"))


def test_a_folder_without_a_test_folder_says_what_is_missing(pets):
    shutil.rmtree(pets / "test")
    with pytest.raises(UserError, match=r"holds train/ and no test/: .*test/<class>/<image>.*move a part of the images of each"):
        load(str(pets))
