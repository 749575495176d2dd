"""A user's own images, as a folder per class or as arrays, wherever a command takes the name of a data set."""

import json
import shutil

import numpy as np
import pytest

from bdjax.cli import main as cli
from bdjax.data import from_arrays, load, write_arrays
from bdjax.results import member, recreate
from bdjax.store import records
from bdjax.sweep import expand
from bdjax.sweep import run as sweep
from bdjax.sweep.grid import Grid
from bdjax.sweep.pending import work_of
from tests.sweep.small import EXECUTION, HOW, refused

RUN = [*EXECUTION, "--width", "4", "--epochs", "2", "--batch", "40", "--spc", "2", "--poison-ratio", "0.1", "--defense", "clp"]


@pytest.fixture(autouse=True)
def cache(own_cache):
    """For every test of this module."""


def written(folder, dataset, turned=False):
    """A data set as <split>/<class>/<number>.png; ``turned``: each image upside down, which leaves mean and deviation alone."""
    from PIL import Image

    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for row, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            place = folder / name / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)[::-1] if turned else np.asarray(image)).save(place / f"{row:03}.png")
    return folder


def grey(dataset, name="grey"):
    train, test = ((np.asarray(split.images)[..., :1], split.labels) for split in (dataset.train, dataset.test))
    return from_arrays(*train, *test, name=name, pad=1)


def done(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def folders(tiny_dataset, tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    return {"images": written(place / "pets", tiny_dataset), "arrays": write_arrays(place / "x-rays", grey(tiny_dataset, "rays"))}


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        for folder in folders.values():
            done("run", "--dataset", folder, *RUN, "--out", out)
    return out


@pytest.mark.slow
def test_records_hold_the_name_and_no_path(results, folders):
    frame = records.read(results)
    assert set(frame["dataset"]) == {"pets", "rays"} and frame.height == 4 and set(frame["status"]) == {"ok"}
    assert set(frame["train_images"]) == {160} and set(frame["n_clean"]) == {80} and set(frame["n_triggered"]) == {60}
    parent = str(folders["images"].parent)
    assert not any(parent in str(value) for row in frame.iter_rows(named=True) for value in row.values())
    assert {json.loads(config)["dataset"]["name"] for config in frame["config"]} == {"pets", "rays"}


@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_the_same_images_elsewhere_are_the_same_experiment(results, folders, tmp_path, monkeypatch, capsys, kind):
    out = shutil.copytree(results, tmp_path / "out")
    shutil.copytree(folders[kind], tmp_path / "moved" / folders[kind].name)
    monkeypatch.chdir(tmp_path / "moved")
    done("run", "--dataset", f"./{folders[kind].name}", *RUN, "--out", out)
    assert "0 members to train, 0 to defend" in capsys.readouterr().err and records.read(out).height == 4


def test_one_name_and_other_images_are_another_experiment(results, tiny_dataset, folders, tmp_path, capsys):
    out, other = shutil.copytree(results, tmp_path / "out"), written(tmp_path / "pets", tiny_dataset, turned=True)
    done("run", "--dataset", other, *RUN, "--out", out)
    assert "1 members to train, 1 to defend" in capsys.readouterr().err
    frame = records.read(out)
    pets = frame.filter(frame["dataset"] == "pets")
    assert pets.height == 4 and pets["cell"].n_unique() == 4 and pets["data_digest"].n_unique() == 2
    names = (str(folders["images"]), str(other))
    both = Grid(dataset=names, defense=("clp",), poison_ratio=(0.1,), width=4, epochs=2, batch=40)
    assert sweep.run(both, out, execution=HOW).height == 4
    assert "0 members to train, 0 to defend" in capsys.readouterr().err
    assert sweep.run(both, out, execution=HOW, only={"dataset": str(other)})["data_digest"].n_unique() == 1
    done("report", out)
    assert (out / "table.md").read_text().count("| clp |") == 3  # nothing is pooled over different images


def test_report(results):
    done("report", results)
    text = (results / "index.html").read_text()
    assert "pets" in text and "rays" in text and "No pictures of badnets on pets: unknown dataset" in text


@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_check_and_plan(folders, tmp_path, capsys, kind):
    name = {"images": "pets", "arrays": "rays"}[kind]
    done("check", "--dataset", folders[kind], *RUN, "--out", tmp_path)
    text = capsys.readouterr().out
    assert f"ok: {name} / cnn / badnets: 160 training and 80 test images match their hash" in text
    assert {"images": "8x8x3 to 4 classes", "arrays": "8x8x1 to 4 classes"}[kind] in text
    done("plan", "--dataset", folders[kind], *RUN, "--no-tune", "--no-memory", "--json")
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["images"] == 2 * 160 and cell["dataset"] == name


def test_prepare(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    done("data", "prepare", folders["images"])
    assert str(tmp_path / "cache" / "datasets" / "folder-") in capsys.readouterr().out
    assert "there is nothing to prepare" in refused(capsys, "data", "prepare", folders["arrays"])


@pytest.fixture
def planned(folders, tmp_path, capsys):
    """A file of a sweep of own data, whose plan for a reduced set is as it should be."""
    file = tmp_path / "grid.py"
    file.write_text(
        "from bdjax.sweep.grid import Grid\n"
        f"grid = Grid(dataset=({str(folders['arrays'])!r},), defense=('clp',), poison_ratio=(0.1,),\n"
        "            width=4, epochs=2, batch=40)\n"
    )
    done("plan", file, "--train-images", "40", "--test-images", "8", "--no-tune", "--no-memory", "--json")
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["dataset"], cell["images"], cell["epochs"]) == ("rays", 2 * 40, 2)
    return file


def test_a_reduced_set_of_a_file_is_planned(planned):
    """See the fixture."""


@pytest.mark.slow  # other shapes: programs of its own
def test_a_reduced_set_and_a_sweep_of_a_file(planned, tmp_path):
    done("sweep", planned, *EXECUTION, "--train-images", "40", "--test-images", "8", "--out", tmp_path / "out")
    frame = records.read(tmp_path / "out")
    assert set(frame["train_images"]) == {40} and set(frame["test_images"]) == {8} and set(frame["n_clean"]) == {8}


@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_mistakes_are_one_line(folders, tmp_path, capsys, command):
    def line(folder, *flags):
        return refused(capsys, command, "--dataset", folder, *flags)

    assert "is named" not in line(tmp_path / "nowhere") and "may also be the path of a folder" in line(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no data set: needed are train/<class>/<image>" in line(tmp_path / "empty")
    broken = shutil.copytree(folders["images"], tmp_path / "broken")
    next((broken / "train" / "class2").iterdir()).write_bytes(b"no image")
    assert "cannot be read as an image" in line(broken)
    shutil.rmtree(broken / "test" / "class2")
    assert "class 'class2' lies in train/ and not in test/" in line(broken)
    assert "train_images is 161" in line(folders["images"], "--train-images", "161")
    harmed = shutil.copytree(folders["arrays"], tmp_path / "harmed")
    (harmed / "test_images.npy").write_bytes(b"\x93NUMPY")
    assert "cannot be read as an array" in line(harmed)
    taken = shutil.copytree(folders["images"], tmp_path / "digits")
    assert "would be named digits, as a built-in data set is" in line(taken)


def test_pictures_and_repairs_are_made_from_the_images_of_the_record(results, folders, tiny_dataset, tmp_path):
    from bdjax.data import load
    from bdjax.errors import UserError

    found = member.find(results, {"dataset": "pets", "defense": "clp"})
    with pytest.raises(UserError, match="pets is a data set of the user's own: name its folder with --dataset"):
        member.network(found)
    dataset = load(str(folders["images"]))
    again = recreate.defend(found, member.network(found, str(folders["images"])), dataset)
    assert (again.measured["acc"], again.measured["asr"]) == (found.row["acc"], found.row["asr"])
    assert recreate.triggered(found, dataset).images.shape == (60, 8, 8, 3)
    other = load(str(written(tmp_path / "pets", tiny_dataset, turned=True)))
    with pytest.raises(UserError, match="these images of pets are not those of the record"):
        recreate.triggered(found, other)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_through_pytorch_and_back(results, folders, tmp_path, capsys, kind):
    pytest.importorskip("torch")
    folder, name = folders[kind], {"images": "pets", "arrays": "rays"}[kind]
    file, frame = tmp_path / "record" / "result.pt", records.read(results)
    cell = frame.filter((frame["dataset"] == name) & (frame["defense"] == "none"))["cell"][0]
    assert "name its folder with --dataset" in refused(capsys, "export-torch", results, file, "--cell", cell)
    done("export-torch", results, file, "--dataset", folder)
    done("import-torch", file, "--poison-ratio", "0.1", "--dataset", folder, "--out", tmp_path / "in")
    keep = ["--spc", "2", "--defense", "clp", *EXECUTION]
    done("run", "--imported", tmp_path / "in", *keep, "--out", tmp_path / "out")
    ours, theirs = (
        {(r["defense"], r["acc"], r["asr"], r["ra"]) for r in rows.iter_rows(named=True) if r["dataset"] == name}
        for rows in (frame, records.read(tmp_path / "out"))
    )
    assert ours == theirs and len(ours) == 2
    moved = shutil.copytree(folder, tmp_path / "moved" / folder.name)
    done("run", "--imported", tmp_path / "in", "--dataset", moved, *keep, "--out", tmp_path / "out")
    assert "0 members to measure, 0 to defend" in capsys.readouterr().err


def test_what_is_decided_of_a_data_set_is_part_of_the_experiment(folders, tmp_path):
    """Crops, mirroring, mean and deviation change what is trained; the pixels alone do not say which were chosen."""

    def cell(kind="images", **settings):
        folder = shutil.copytree(folders[kind], tmp_path / str(len(list(tmp_path.iterdir()))) / "own")
        known = json.loads((folder / "dataset.json").read_text()) if kind == "arrays" else {}
        (folder / "dataset.json").write_text(json.dumps({**known, **settings}))
        grid = Grid(dataset=(str(folder),), defense=("clp",), width=4)
        (branch,) = expand.cells(grid)
        return work_of(branch, load(str(folder)), grid).cell

    assert cell() == cell() and len({cell(), cell(flip=True), cell(pad=3), cell(flip=True, pad=3)}) == 4
    first, second = (cell("arrays", mean=[mean], std=[0.2]) for mean in (0.4, 0.5))
    assert first != second
