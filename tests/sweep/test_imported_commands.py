"""The command line on an import folder: run, plan, check, report, and one clear line for every mistake."""

import json
import shutil

import pytest

from bdjax.cli import main as cli
from bdjax.cli.flags import Scenario, grid_of
from bdjax.store import records
from tests.sweep.small import DATA, EXECUTION, all_to_all, images, import_of, metrics, refused, saved

pytestmark = pytest.mark.usefixtures("own_cache")
RUN = [*DATA, *EXECUTION, "--spc", "2", "--defense", "clp"]


@pytest.fixture(scope="module")
def bare(population, tmp_path_factory):
    """An import folder without triggered images."""
    return saved(tmp_path_factory.mktemp("bare") / "in", import_of(population[0], triggered=None))


@pytest.fixture(scope="module")
def results(imported, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        assert cli.main(["run", "--imported", str(imported), *RUN, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_run_takes_everything_from_the_folder(results, population, imported, capsys):
    frame = records.read(results)
    for defense in ("none", "clp"):
        assert metrics(frame, defense) == metrics(population[1], defense)
    assert cli.main(["run", "--imported", str(imported), *RUN, "--out", str(results)]) == 0
    captured = capsys.readouterr()
    assert "0 members to measure, 0 to defend" in captured.err and "stored" in captured.out


def test_run_takes_single_networks_and_our_own_trigger(population, bare, tmp_path):
    chosen = ["--attack", "badnets", "--seeds", "1", "--poison-ratio", "0.1", "--width", "4"]
    assert cli.main(["run", "--imported", str(bare), *chosen, *RUN, "--out", str(tmp_path)]) == 0
    found, want = (metrics(frame, "clp") for frame in (records.read(tmp_path), population[1]))
    assert found == {key: value for key, value in want.items() if key[:2] == (1, 0.1)}


def test_report_on_imported_networks(results, capsys):
    assert cli.main(["report", str(results)]) == 0
    text = (results / "index.html").read_text()
    assert "of this attack only stored test images are known" in text and "clp" in (results / "table.md").read_text()


def test_report_where_attack_labels_differ(population, tmp_path):
    folder = saved(tmp_path / "in", import_of(population[0], triggered=all_to_all(images())))
    assert cli.main(["run", "--imported", str(folder), *RUN, "--out", str(tmp_path / "out"), "--report"]) == 0
    assert "stored" in (tmp_path / "out" / "index.html").read_text()


def test_plan_counts_no_training(imported, capsys):
    arguments = ["plan", "--imported", str(imported), *DATA, "--spc", "2", "--defense", "ft", "clp", "--no-tune"]
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (cell,) = told["cells"]
    assert (cell["attack"], cell["epochs"], cell["images"], cell["members"]) == ("stored", 0, 0, 4)
    assert told["experiments"] == 8 and told["defense_cells"] == 2
    assert cli.main(arguments) == 0
    assert "digits / cnn / stored" in capsys.readouterr().out


def test_check_trains_nothing(imported, capsys, tmp_path):
    assert cli.main(["check", "--imported", str(imported), *RUN, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "ok: digits / cnn / stored" in text and "imported" in text and "match their hash" in text
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "preactresnet18"], "holds networks cnn; given preactresnet18"),
        (["--width", "8"], "holds networks of width 4; given 8"),
        (["--depth", "1"], "cnn has no depth to reduce"),
        (["--seeds", "0", "5"], "no network with seed 5 and poison ratio 0; it holds seed 0 ratio 0, seed 0 ratio 0.1"),
        (["--poison-ratio", "0.2"], "no network with seed 0 and poison ratio 0.2"),
        (["--epochs", "3"], "imported networks are not trained: epochs has no effect"),
        (["--batch", "3"], "imported networks are not trained: batch has no effect"),
        (["--config", "recipe.lr=1"], "imported networks are not trained: recipe has no effect"),
        (["--config", "badnets.target=1"], "allowed: stored, ft, fp, clp, recipe"),
        (["--config", "stored.target=1"], "attack_config has no effect"),
        (["--target", "1"], "the stored images of"),
        (["--attack", "badnet"], "Did you mean 'badnets'?"),
        (["--attack", "input_aware"], "the trigger of input_aware is learned with the network"),
        (["--dataset", "digts"], "Did you mean 'digits'?"),
        (["--dataset", "gtsrb"], "gtsrb has 43 classes of 32x32x3 images; the networks in"),
        (["--dataset", "cifar10"], "imported for 10 classes of 16x16x3"),
        (["--train-images", "201", "--test-images", "9"], "test_images is 9"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_mistakes_are_one_line(capsys, tmp_path, imported, command, flags, message):
    assert message in refused(capsys, command, "--imported", imported, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_without_images_an_attack_must_be_named(capsys, bare, command):
    line = refused(capsys, command, "--imported", bare, *DATA)
    assert "holds no triggered test images" in line and "with --attack" in line
    assert "holds no triggered test images" in refused(capsys, command, "--imported", bare, "--attack", "stored")


def test_a_file_of_a_sweep_names_the_attack(bare, imported, tmp_path, capsys):
    file = tmp_path / "grid.py"
    file.write_text("from bdjax.sweep.grid import Grid\ngrid = Grid(attack=('blended',), defense=('clp',), spc=(2,))\n")
    arguments = ["plan", "--file", str(file), "--no-tune", "--no-memory", *DATA]
    assert cli.main([*arguments, "--imported", str(bare)]) == 0
    assert "digits / cnn / blended" in capsys.readouterr().out
    assert cli.main([*arguments, "--imported", str(imported)]) == 0
    assert "digits / cnn / stored" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_stored_images_need_their_folder(capsys, command):
    assert "name the folder with --imported" in refused(capsys, command, "--attack", "stored")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def edited(path):
    path.write_text(path.read_text().replace('"width": 4', '"width": 8'))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("network_1.npz", cut, "network_1.npz does not match its checksum; import the checkpoint again"),
        ("triggered.npz", cut, "triggered.npz does not match"),
        ("network_0.npz", lambda path: path.unlink(), "network_0.npz is missing"),
        ("manifest.json", edited, "manifest.json does not match its checksum"),
        ("manifest.json", cut, "manifest.json cannot be read"),
        ("manifest.json", lambda path: path.unlink(), "is no import folder"),
    ],
)
def test_a_damaged_folder_is_one_line(capsys, imported, tmp_path, file, harm, message):
    folder = shutil.copytree(imported, tmp_path / "in")
    harm(folder / file)
    assert message in refused(capsys, "run", "--imported", folder, *RUN, "--out", tmp_path / "out")


def test_no_folder_is_one_line(capsys, tmp_path):
    assert "is no import folder" in refused(capsys, "run", "--imported", tmp_path / "nowhere", *RUN)


def test_an_unknown_poison_ratio_is_one_line(capsys, population, tmp_path):
    folder = saved(tmp_path / "in", import_of(population[0], points=((0, None), (0, 0.1), (1, 0.0), (1, 0.1))))
    for flags in ([], ["--poison-ratio", "0.1"]):
        line = refused(capsys, "run", "--imported", folder, *flags, *RUN)
        assert "does not tell the poison ratio of seed 0" in line and "--poison-ratio" in line


def test_a_reduced_depth_comes_from_the_folder(tmp_path):
    import jax
    import numpy as np

    from bdjax.data import spec
    from bdjax.models import by_name
    from bdjax.store.import_folder import File, Import
    from bdjax.sweep.expand import cells

    model = by_name("preactresnet18", spec("digits"), width=4, depth=1)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, jax.random.key(0)))
    one = Import("preactresnet18", 4, 10, (16, 16, 3), "digits", (File("x", "0"),), ((0, 0.1),), (zeros,), (0,), ({},), None, 1)
    folder = str(saved(tmp_path / "in", one))
    (branch,) = cells(grid_of(Scenario(imported=folder, attack="badnets")))
    assert (branch.train.width, branch.train.depth) == (4, 1)
    for field, value, told in (("depth", 2, "whole"), ("width", 8, "8")):  # two blocks per stage are all there are
        with pytest.raises(ValueError, match=f"{field} {getattr(one, field)}; given {told}"):
            cells(grid_of(Scenario(imported=folder, attack="badnets", **{field: value})))
