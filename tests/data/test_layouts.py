"""Known data sets as they are unpacked: recognised by what is there, read as their archives are, refused where not whole."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest

from bdjax.data import known, load, prepare, sizes, spec
from bdjax.data.cifar10 import PYTHON
from bdjax.data.table import DATASETS
from bdjax.data.tiny_imagenet import WNIDS
from bdjax.errors import UserError
from tests.data import layouts


def equal(dataset, images, labels):
    for split, rows in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(rows.images, images[split])
        np.testing.assert_array_equal(rows.labels, labels[split])


def counted(patch, name, labels):
    """Tell the table that a data set has the rows of these labels."""
    source = DATASETS[name]
    counts = {split: tuple(np.bincount(labels[split], minlength=source.spec.classes).tolist()) for split in labels}
    first = tuple(int(label) for label in labels["train"][: len(source.editions[0].first)])
    editions = (source.editions[0]._replace(counts=counts, first=first), *source.editions[1:])
    patch.setitem(DATASETS, name, source._replace(editions=editions))


@pytest.mark.parametrize("kind", list(layouts.CIFAR))
def test_cifar_in_a_folder_in_the_folder_above_and_in_its_archive(tmp_path, capsys, kind):
    form, made = layouts.CIFAR[kind]
    files, images, labels = made()
    above = tmp_path / "above"
    layouts.write(above / form.home, files)
    first = load(str(above / form.home))
    equal(first, images, labels)
    assert first.spec.name == form.home and first.spec.name not in DATASETS and first.spec.class_names == form.spec.class_names
    assert first.spec.flip is True and first.spec.pad == 4 and sizes(str(above)) == (len(labels["train"]), len(labels["test"]))
    message = capsys.readouterr().err
    assert "so it is a data set of its own" in message and message.count("\n") == 1
    packed = layouts.tar(tmp_path / "packed" / form.archive, form.home, files)
    for path in (packed, packed.parent, shutil.copy(packed, tmp_path / "renamed.tgz")):
        assert load(str(path)).digest == first.digest


@pytest.mark.parametrize("key", ["unpacked", "torchvision", "kaggle"])
def test_gtsrb_in_the_order_of_its_archive_with_junk_between(tmp_path, key):
    files, images, labels = layouts.gtsrb(key)
    for folder in {name.rpartition("/")[0] for name in files}:
        files |= {f"{folder}/Thumbs.db".lstrip("/"): b"", f"{folder}/._00000.ppm".lstrip("/"): b"no image"}
    if key == "kaggle":  # the same images once more, in small letters
        files |= {name[0].lower() + name[1:]: data for name, data in files.items() if name.startswith(("Train/", "Test/"))}
    folder = layouts.write(tmp_path / "signs", files)
    dataset = load(str(folder))
    equal(dataset, images, labels)
    assert dataset.spec.name == "signs" and dataset.spec.class_names == DATASETS["gtsrb"].spec.class_names


def test_gtsrb_is_scaled_to_32_pixels_unless_the_settings_say_otherwise(tmp_path, monkeypatch):
    from PIL import Image

    files, images, labels = layouts.gtsrb("kaggle", side=50)
    folder = layouts.write(tmp_path / "signs", files)
    row = load(str(folder)).train.images[3]
    expected = Image.fromarray(images["train"][3]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(row, np.asarray(expected))
    (folder / "dataset.json").write_text('{"image_size": [50, 50]}')
    np.testing.assert_array_equal(load(str(folder)).train.images, images["train"])
    (folder / "dataset.json").unlink()
    counted(monkeypatch, "gtsrb", labels)
    named = load("gtsrb", folder)
    assert named.spec == spec("gtsrb")
    np.testing.assert_array_equal(named.train.images[3], np.asarray(expected))


def test_tiny_imagenet_unpacked_with_the_names_of_its_classes(tmp_path):
    files, images, labels = layouts.tiny(["n00000002", "n00000001", WNIDS[0]])
    folder = layouts.write(tmp_path / "tiny-imagenet-200", files)
    (folder / "train" / "n00000001" / "images" / "desktop.ini").write_text("")
    dataset = load(str(folder))
    equal(dataset, images, labels)
    assert dataset.spec.class_names == ("quokka", "numbat", "goldfish") and dataset.spec.image_shape == (64, 64, 3)
    assert load(str(tmp_path)).digest == dataset.digest  # the folder above


def test_tiny_imagenet_with_a_validation_set_sorted_into_classes(tmp_path):
    ids = ["n00000001", "n00000002"]
    files, images, labels = layouts.tiny(ids)
    for number, wnid in enumerate(ids):
        files[f"val/{wnid}/images/val_{number:03d}.JPEG"] = files.pop(f"val/images/val_{number:03d}.JPEG")
    equal(load(str(layouts.write(tmp_path / "tiny", files))), images, labels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [("-idx", "-ubyte"), (".idx", "-ubyte")])
@pytest.mark.parametrize("home", ["", "MNIST/raw"])
def test_mnist_as_idx_files(tmp_path, packed, names, home):
    files, images, labels = layouts.mnist(packed, names=names)
    folder = layouts.write(tmp_path / "own", {os.path.join(home, name): data for name, data in files.items()})
    dataset = load(str(folder))
    equal(dataset, images, labels)
    assert dataset.spec.image_shape == (28, 28, 1) and dataset.spec.flip is False


def test_idx_files_of_any_size_and_number_of_classes(tmp_path):
    files, images, labels = layouts.mnist(rows=26, side=9)
    labels = {split: np.arange(26, dtype=np.uint8) % 13 for split in labels}
    files["train-labels-idx1-ubyte"] = files["t10k-labels-idx1-ubyte"] = layouts.idx(labels["train"])
    dataset = load(str(layouts.write(tmp_path / "letters", files)))
    equal(dataset, images, labels)
    assert dataset.spec.classes == 13 and dataset.spec.class_names[12] == "12" and dataset.spec.image_shape == (9, 9, 1)


def test_the_label_ten_of_svhn_is_the_digit_zero(tmp_path):
    files, images, labels = layouts.svhn()
    folder = layouts.write(tmp_path / "numbers", files)
    dataset = load(str(folder))
    equal(dataset, images, labels)
    assert dataset.train.labels[0] == 0 and dataset.spec.class_names[0] == "0"


WHOLE = {
    "cifar10": lambda: layouts.cifar_python(PYTHON, 20),
    "cifar100": layouts.CIFAR["cifar100 binary"][1],
    "gtsrb": lambda: layouts.gtsrb("unpacked"),
    "tiny_imagenet": lambda: layouts.tiny(WNIDS, 1),
    "svhn": layouts.svhn,
    "mnist": layouts.mnist,
    "fashion_mnist": layouts.mnist,
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_whole_copy_is_the_data_set_itself_and_a_part_of_one_is_not(tmp_path, monkeypatch, capsys, name):
    files, images, labels = WHOLE[name]()
    folder = layouts.write(tmp_path / "copy", files)
    with monkeypatch.context() as patch:
        counted(patch, name, labels)
        if name == "svhn":  # its files are its archives
            source = DATASETS[name]
            patch.setitem(DATASETS, name, source._replace(editions=(source.editions[0]._replace(archives={"x": "md5:0"}),)))
        named = load(name, folder)
        equal(named, images, labels)
        assert named.spec == DATASETS[name].spec and known(str(folder)) == str(folder)
        by_path = load(str(folder), "elsewhere")  # the path says where they are
        assert by_path.spec == named.spec and by_path.digest == named.digest and spec(str(folder)) == named.spec
        shutil.move(folder, tmp_path / "moved")
        assert load(name).digest == named.digest and sizes(name) == (len(labels["train"]), len(labels["test"]))
        assert capsys.readouterr().err == ""
        (tmp_path / "moved" / "dataset.json").write_text('{"name": "mine", "pad": 1}')
        assert load(str(tmp_path / "moved")).spec[0] == "mine" and spec(str(tmp_path / "moved")).pad == 1
        (tmp_path / "moved" / "dataset.json").unlink()
    if name != "svhn":
        with pytest.raises(UserError, match=rf"moved is no whole copy.* {name}: .* expected .*; .* --dataset .*moved\."):
            load(name, tmp_path / "moved")
    assert load(str(tmp_path / "moved")).spec.name == "moved"


def test_an_unpacked_copy_that_changes_is_read_again(tmp_path, monkeypatch):
    files, images, labels = layouts.mnist()
    folder = layouts.write(tmp_path / "mnist", files)
    counted(monkeypatch, "mnist", labels)
    first = load("mnist", folder).digest
    (folder / "train-images-idx3-ubyte").write_bytes(layouts.idx(255 - images["train"][..., 0]))
    again = load("mnist", folder)
    assert again.digest != first
    np.testing.assert_array_equal(again.train.images, 255 - images["train"])


def test_fashion_is_told_from_other_clothes_by_its_first_labels(tmp_path, monkeypatch):
    files, _, labels = layouts.mnist()
    folder = layouts.write(tmp_path / "other", files)
    counted(monkeypatch, "fashion_mnist", labels)
    source = DATASETS["fashion_mnist"]
    monkeypatch.setitem(DATASETS, "fashion_mnist", source._replace(editions=(source.editions[0]._replace(first=(9, 0, 0, 3)),)))
    assert load(str(folder)).spec.name == "other"
    with pytest.raises(
        UserError, match=r"first training labels are \(0, 1, 2, 3\), expected \(9, 0, 0, 3\); it is another data set"
    ):
        load("fashion_mnist", folder)


def test_rows_of_the_pickled_archive_equal_those_of_the_binary_one(tmp_path, monkeypatch):
    from tests.data import made_up

    files, images, labels = layouts.cifar_python(PYTHON, 20)
    folder = tmp_path / "data" / "cifar10"
    layouts.tar(folder / PYTHON.archive, PYTHON.home, files)
    monkeypatch.setitem(made_up.COUNTS, "cifar10", {split: tuple(np.bincount(labels[split]).tolist()) for split in labels})
    made_up.declare(monkeypatch, "cifar10", "python", folder)
    equal(load("cifar10", tmp_path / "data"), images, labels)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickled_batch_is_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    files, _, _ = layouts.cifar_python(PYTHON, 10, protocol)
    files["data_batch_3"] = pickle.dumps({b"data": Trap(), b"labels": [0]}, protocol)
    folder = layouts.write(tmp_path / "batches", files)
    with pytest.raises(
        UserError, match=r"data_batch_3 cannot be read: it holds the Python object \w+.mkdir: refused, nothing of it"
    ):
        load(str(folder))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_batches_of_every_pickle_protocol_are_read(tmp_path, protocol):
    files, images, labels = layouts.cifar_python(PYTHON, 10, protocol, text=bool(protocol % 2), arrays=protocol > 2)
    equal(load(str(layouts.write(tmp_path / "batches", files))), images, labels)


def test_classes_without_images_are_left_out_and_said(tmp_path, capsys):
    files, images, labels = layouts.gtsrb("kaggle", classes=12)
    drop = [name for name in files if name.startswith("Train/3/")]
    for name in drop:
        del files[name]
    files["Test.csv"] = b"\n".join(line for line in files["Test.csv"].split(b"\n") if b",3,Test" not in line)
    del files["Train.csv"]
    del files[f"Test/{next(number for number in range(12) if labels['test'][number] == 3):05d}.png"]
    dataset = load(str(layouts.write(tmp_path / "some", files)))
    assert dataset.spec.classes == 11 and dataset.spec.class_names[3] == DATASETS["gtsrb"].spec.class_names[4]
    keep = labels["train"] != 3
    np.testing.assert_array_equal(dataset.train.images, images["train"][keep])
    assert "11 of its 43 classes, which are numbered 0 to 10 in their order" in capsys.readouterr().err


def test_a_folder_with_several_data_sets_asks_for_one(tmp_path):
    layouts.write(tmp_path / "cifar-10-batches-py", layouts.cifar_python(PYTHON, 10)[0])
    layouts.write(tmp_path / "MNIST" / "raw", layouts.mnist()[0])
    with pytest.raises(UserError, match=r"holds several data sets \(cifar-10-batches-py, MNIST/raw\); name one of them"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "settings, shape", [({"channels": 3}, (28, 28, 3)), ({"channels": 3, "image_size": [32, 32]}, (32, 32, 3))]
)
def test_three_channels_are_made_of_one_where_the_settings_say_so(tmp_path, settings, shape):
    files, images, _ = layouts.mnist()
    folder = layouts.write(tmp_path / "digits3", files)
    (folder / "dataset.json").write_text(json.dumps(settings))
    dataset = load(str(folder))
    assert dataset.spec.image_shape == shape and len(dataset.spec.mean) == 3
    for channel in range(3):
        np.testing.assert_array_equal(dataset.train.images[..., channel], dataset.train.images[..., 0])
    if shape[0] == 28:
        np.testing.assert_array_equal(dataset.train.images[..., :1], images["train"])


def test_prepare_takes_a_layout_from_the_command_line(tmp_path, capsys):
    from bdjax.cli.main import main

    folder = layouts.write(tmp_path / "numbers", layouts.svhn()[0])
    assert main(["data", "prepare", str(folder)]) == 0
    told = capsys.readouterr()
    assert "numbers is prepared in" in told.out and told.err.startswith("bdjax: note: ") and told.err.count("\n") == 1
    assert prepare(str(folder)).name.startswith("folder-")
