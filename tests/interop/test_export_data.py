"""Exported data are files that hold what the manifest says, are read as a data set, and replace nothing by accident."""

import hashlib
import json
import shutil

import numpy as np
import polars as pl
import pytest
from PIL import Image

import bdjax
from bdjax.cli.main import main
from bdjax.data import load, write_arrays
from bdjax.data.poisoned_export import already_poisoned
from bdjax.errors import UserError
from bdjax.interop.export_data import export_data
from bdjax.reporting.tables import markdown
from bdjax.results import member, recreate
from bdjax.results.learned import Learning
from bdjax.store.hashing import array_digest
from bdjax.sweep.grid import Grid
from tests.reporting.made_up import SOURCE
from tests.sweep.small import go, refused

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def tiny(tiny_dataset, tmp_path_factory):
    """The tiny data set as a folder of the user's own."""
    return str(write_arrays(tmp_path_factory.mktemp("data") / "tiny", tiny_dataset))


def grid(tiny, **fields):
    return Grid(**{"dataset": tiny, "attack": "badnets", "poison_ratio": 0.1, "seeds": 3, "target": 1, **fields})


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """Both forms of one member's data."""
    out = tmp_path_factory.mktemp("out")
    return {form: export_data(grid(tiny), out / form, form=form).path for form in ("images", "arrays")}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def arrays(folder):
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def test_arrays_are_what_the_manifest_says(written, tiny_dataset):
    found, known = arrays(written["arrays"]), manifest(written["arrays"])
    assert known["digests"] == {name: array_digest([array]) for name, array in found.items()} and len(found) == 10
    assert known["rows"] == {"train": 160, "test": 80, "test_triggered": 60} and known["poisoned"] == 16
    assert (known["seed"], known["ratio"], known["target"], known["labels"]) == (3, 0.1, 1, "all_to_one")
    assert known["config"]["attack"]["name"] == "badnets" and known["config"]["dataset"]["name"] == "tiny"
    assert "model" not in known["config"] and {"bdjax", "jax"} <= known["versions"].keys()
    poisoned = found["train_poisoned"]
    assert poisoned.dtype == bool and poisoned.sum() == 16
    np.testing.assert_array_equal(found["train_true_labels"], tiny_dataset.train.labels)
    np.testing.assert_array_equal(found["train_labels"], np.where(poisoned, 1, tiny_dataset.train.labels))
    np.testing.assert_array_equal(found["train_images"][~poisoned], tiny_dataset.train.images[~poisoned])
    assert (found["train_images"][poisoned][:, -3:, -3:] == 255).all()  # BadNets' patch
    rows = found["test_triggered_rows"]
    np.testing.assert_array_equal(rows, np.flatnonzero(tiny_dataset.test.labels != 1))
    np.testing.assert_array_equal(found["test_triggered_true_labels"], tiny_dataset.test.labels[rows])
    assert (found["test_triggered_attack_labels"] == 1).all() and (found["test_triggered_images"][:, -3:, -3:] == 255).all()


def test_images_and_index_hold_the_same(written):
    folder, same = written["images"], arrays(written["arrays"])
    assert manifest(folder) == {**manifest(written["arrays"]), "form": "images"}
    index = pl.read_csv(folder / "index.csv")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert set(index["file"]) == files and index.height == len(files) == 160 + 80 + 60
    for split, labels in (("train", "train_labels"), ("test", "test_labels"), ("test_triggered", "test_triggered_attack_labels")):
        part = index.filter(pl.col("split") == split)
        pixels = np.stack([np.asarray(Image.open(folder / file)) for file in part["file"]])
        np.testing.assert_array_equal(pixels, same[f"{split}_images"])
        np.testing.assert_array_equal(part["label"], same[labels])
        true = same.get(f"{split}_true_labels", same[labels])
        np.testing.assert_array_equal(part["true_label"], true)
        np.testing.assert_array_equal(part["row"], same.get(f"{split}_rows", np.arange(len(pixels))))
        folders = [int(file.split("/")[1]) for file in part["file"]]
        np.testing.assert_array_equal(folders, true if split == "test_triggered" else same[labels])
        flags = {"train": same["train_poisoned"], "test": np.zeros(80), "test_triggered": np.ones(60)}[split]
        np.testing.assert_array_equal(part["poisoned"], flags)


def test_both_forms_are_read_as_a_data_set(written, tiny_dataset):
    same = arrays(written["arrays"])
    loaded = load(str(written["arrays"]))
    facts = tiny_dataset.spec._replace(name="tiny-badnets-0.1-3")
    assert loaded.spec == facts
    np.testing.assert_array_equal(loaded.train.images, same["train_images"])
    np.testing.assert_array_equal(loaded.train.labels, same["train_labels"])
    np.testing.assert_array_equal(loaded.test.images, tiny_dataset.test.images)
    filed = load(str(written["images"]))  # class by class, and normalised by its own images
    assert filed.spec == facts._replace(mean=filed.spec.mean, std=filed.spec.std, class_names=("0", "1", "2", "3"))
    for split, labels in (("train", same["train_labels"]), ("test", tiny_dataset.test.labels)):
        order = np.argsort(labels, kind="stable")
        np.testing.assert_array_equal(getattr(filed, split).labels, labels[order])
        np.testing.assert_array_equal(getattr(filed, split).images, same[f"{split}_images"][order])


def test_grey_images_stay_grey(tiny_dataset, tmp_path):
    from bdjax.data import from_arrays

    train, test = ((np.asarray(split.images)[..., :1], split.labels) for split in (tiny_dataset.train, tiny_dataset.test))
    folder = write_arrays(tmp_path / "rays", from_arrays(*train, *test, name="rays"))
    made = export_data(grid(str(folder)), tmp_path / "out")
    assert load(str(made.path)).spec.image_shape == (8, 8, 1)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("form", ["images", "arrays"])
def test_the_same_data_are_the_same_bytes(written, tiny, tmp_path, form):
    again = export_data(grid(tiny), tmp_path / "again", form=form)
    assert digest(again.path) == digest(written[form])
    other = export_data(grid(tiny, seeds=4), tmp_path / "other", form=form)
    assert digest(other.path) != digest(again.path) and (again.train, again.poisoned, again.triggered) == (160, 16, 60)


def test_an_attack_inside_the_batch_has_its_test_images_alone(tiny, tmp_path, capsys):
    flags = ["export-data", "wanet", "--dataset", tiny, "--target", "1", "--out", tmp_path / "out"]
    assert "wanet poisons inside the batch" in refused(capsys, *flags) and not (tmp_path / "out").exists()
    assert main([str(flag) for flag in [*flags, "--test-only"]]) == 0
    assert "60 triggered test images in " in capsys.readouterr().out
    known, index = manifest(tmp_path / "out"), pl.read_csv(tmp_path / "out" / "index.csv")
    assert known["rows"] == {"test_triggered": 60} and "poisoned" not in known and known["name"] is None
    assert set(index["split"]) == {"test_triggered"} and not (tmp_path / "out" / "train").exists()
    made = export_data(grid(tiny, attack="wanet"), tmp_path / "arrays", form="arrays", test_only=True)
    assert sorted(arrays(made.path)) == [f"test_triggered_{n}" for n in ("attack_labels", "images", "rows", "true_labels")]


def test_nothing_is_replaced_by_accident(tiny, tmp_path):
    out = tmp_path / "out"
    export_data(grid(tiny, seeds=4), out, form="arrays")
    before = digest(out)
    with pytest.raises(UserError, match="exists already"):
        export_data(grid(tiny), out)
    assert digest(out) == before
    export_data(grid(tiny), out, overwrite=True)
    assert (out / "train").is_dir() and not list(out.glob("*.npy"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no data that were exported by bdjax, so it is not replaced"):
        export_data(grid(tiny), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_what_fails_half_way_leaves_nothing(tiny, tmp_path, monkeypatch):
    from bdjax.interop import poisoned_folder

    def full(image, shape):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(poisoned_folder, "portable", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        export_data(grid(tiny), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_class_that_the_poison_empties_is_named(tiny, tmp_path):
    lines = []
    export_data(grid(tiny, poison_ratio=1.0), tmp_path / "images", say=lines.append)
    assert len(lines) == 1 and lines[0].startswith("the poison leaves no training image with label 0, 2, 3; a folder of images")
    with pytest.raises(UserError, match="holds no image"):
        load(str(tmp_path / "images"))
    export_data(grid(tiny, poison_ratio=1.0), tmp_path / "arrays", form="arrays", say=lines.append)
    assert lines[1] == "the poison leaves no training image with label 0, 2, 3"
    assert set(load(str(tmp_path / "arrays")).train.labels.tolist()) == {1}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"attack": ("badnets", "sig")}, {}, "exported data have one attack; given badnets, sig"),
        ({"seeds": (0, 1)}, {}, "exported data have one seed; given 0, 1"),
        ({"poison_ratio": ()}, {}, "exported data have one poison ratio; given none"),
        ({"poison_ratio": 1.5}, {}, "not a fraction"),
        ({"imported": "somewhere"}, {}, "there is nothing to poison"),
        ({"recipe": {"lr": 0.1}}, {}, "recipe.lr: no network is trained to export data"),
        ({"epochs": 3}, {}, "recipe.epochs: no network is trained"),
        ({}, {"learning": Learning("somewhere")}, "--results: the trigger of badnets is not learned with a network"),
        ({"attack": "input_aware"}, {"test_only": True}, "input_aware learns its trigger .* with --results"),
        ({}, {"form": "image"}, "unknown form 'image'; allowed: images, arrays. Did you mean 'images'?"),
        ({"poison_ratio": 0.001}, {}, "badnets poisons no row"),
    ],
)
def test_what_has_no_meaning_is_refused(tiny, tmp_path, fields, options, message):
    with pytest.raises(UserError, match=message):
        export_data(grid(tiny, **fields), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["badnets", "--model", "cnn"], "--model: the images of badnets depend on no network"),
        (["badnets", "--width", "4"], "--width is that of a network of --results"),
        (["badnet"], "Did you mean 'badnets'?"),
        (["badnets", "--config", "badnets.sise=5"], "Did you mean 'size'?"),
    ],
)
def test_mistakes_of_the_command_are_one_line(tiny, tmp_path, capsys, flags, message):
    assert message in refused(capsys, "export-data", *flags, "--dataset", tiny, "--out", tmp_path / "out")


def test_the_command_says_what_it_wrote(tiny, tmp_path, capsys):
    flags = ["--dataset", tiny, "--config", "badnets.size=2", "--poison-ratio", "0.05", "--form", "arrays"]
    assert main(["export-data", "badnets", *flags, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ratio 0.05, seed 0: 160 training images, 8 of them poisoned, and 60 triggered test images in " in said
    assert said.rstrip().endswith(f"bdjax run --dataset {tmp_path / 'out'} --poison-ratio 0")
    assert manifest(tmp_path / "out")["config"]["attack"]["config"]["size"] == 2


def test_a_learned_trigger_comes_from_a_run(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    own = f"{tmp_path / 'mine.py'}:learned"
    fields = {"dataset": "digits", "attack": own, "poison_ratio": 0.1, "seeds": 2, "train_images": 100, "test_images": 100}
    go(Grid(**fields, defense=(), width=4), tmp_path / "run")
    made = export_data(
        Grid(**fields),
        tmp_path / "out",
        form="arrays",
        test_only=True,
        learning=Learning(str(tmp_path / "run"), poison_ratio=0.1),
    )
    trained = member.find(tmp_path / "run", {"seed": 2})
    want = recreate.triggered(trained, load("digits", train_images=100, test_images=100))
    found, known = arrays(made.path), manifest(made.path)
    np.testing.assert_array_equal(found["test_triggered_images"], want.images)
    np.testing.assert_array_equal(found["test_triggered_rows"], want.index)
    assert known["trigger_digest"] == trained.row["trigger_digest"] and known["trigger"] == "cnn, seed 2"


def test_a_run_on_exported_data_says_that_they_are_poisoned(written, tmp_path, capsys):
    names = ("red", "green", "blue", "grey")
    folder = shutil.copytree(written["images"], tmp_path / "named")
    settings = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**settings, "class_names": names}))
    assert load(str(folder)).spec.class_names == names
    said = f"tiny-badnets-0.1-3 is an exported training set in which badnets has poisoned {manifest(folder)['poisoned']} images"
    cell = Grid(dataset=str(folder), model="cnn", width=4, poison_ratio=0, defense=(), epochs=1, batch=20)
    frame = bdjax.run(cell, tmp_path / "out")
    assert said in capsys.readouterr().err and said in frame["warning"][0]
    assert f"§ {said}" in markdown(frame)


def test_names_of_classes_go_with_the_pictures(tiny_dataset, tmp_path):
    spec = tiny_dataset.spec._replace(name="named", class_names=("red", "green", "blue", "grey"))
    place = write_arrays(tmp_path / "named", tiny_dataset._replace(spec=spec))
    made = export_data(grid(str(place)), tmp_path / "out", form="images").path
    assert load(str(made)).spec.class_names == spec.class_names
    (made / "dataset.json").write_text('{"class_names": ["red"]}')
    with pytest.raises(UserError, match=r"class_names of dataset\.json has 1 names for 4 classes"):
        load(str(made))


def test_other_folders_are_not_taken_for_poisoned(tiny, tmp_path):
    assert already_poisoned(tiny) == already_poisoned("digits") == ""
    (tmp_path / "manifest.json").write_text("[1]")
    assert already_poisoned(str(tmp_path)) == ""
