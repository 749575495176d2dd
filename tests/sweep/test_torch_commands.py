"""From a run to PyTorch and back to a run, by the commands alone."""

import json

import numpy as np
import pytest

from bdjax.cli import main as cli
from bdjax.interop import read
from bdjax.interop.layout import layout
from bdjax.results import member, recreate
from bdjax.store import import_folder, records
from tests.sweep.small import DATA, EXECUTION, images, metrics, refused

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("own_cache")]
RUN = [*DATA, *EXECUTION, "--spc", "2"]
ONE = ["--seed", "0", "--poison-ratio", "0.1"]


def done(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def exported(population, tmp_path_factory):
    """One backdoored network as an attack_result.pt with its images."""
    folder = tmp_path_factory.mktemp("record")
    done("export-torch", population[0], folder / "attack_result.pt", *ONE)
    return folder / "attack_result.pt"


@pytest.fixture(scope="module")
def brought(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brought") / "in"
    done("import-torch", exported, "--poison-ratio", "0.1", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def defended(brought, tmp_path_factory):
    out = tmp_path_factory.mktemp("defended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        done("run", "--imported", brought, *RUN, "--defense", "ft", "clp", "--config", "ft.epochs=2", "--out", out)
    return out


def test_there_and_back_the_network_is_the_same(population, brought, defended):
    """Bit for bit, so its measures are the same, and so are those of its repairs."""
    found, there = member.find(population[0], {"seed": 0, "ratio": 0.1}), import_folder.load(brought)
    assert (there.dataset, there.points, there.triggered.rows) == ("digits", ((0, 0.1),), 100)
    for part in ("params", "batch_stats"):
        for module, leaves in found.variables[part].items():
            for name, leaf in leaves.items():
                assert there.variables[0][part][module][name].tobytes() == leaf.tobytes()
    frame = records.read(defended)
    for defense in ("none", "ft", "clp"):
        want = {key: value for key, value in metrics(population[1], defense).items() if key[:2] == (0, 0.1)}
        got = metrics(frame, defense)
        assert got and all(want[key] == value for key, value in got.items())


def test_a_repaired_network_goes_out_whole(defended, brought, tmp_path, capsys):
    file = tmp_path / "ft.pt"
    capsys.readouterr()
    done("export-torch", defended, file, "--defense", "ft", "--spc", "2", "--imported", brought)
    row = member.find(defended, {"defense": "ft"}).row
    told = capsys.readouterr().out
    assert f"ACC {row['acc']:.4f}, ASR {row['asr']:.4f} (its record: {row['acc']:.4f}, {row['asr']:.4f})" in told
    result = torch.load(file, weights_only=True)
    assert (result["model_name"], result["num_classes"]) == ("cnn", 10)
    state = result["model"]
    assert list(read(file).state) == list(state)
    model = member.network(member.find(defended, {}))
    assert {name: tuple(value.shape) for name, value in state.items()} == {t.name: t.shape for t in layout(model)}
    before = torch.load(file_of(defended, tmp_path, "--imported", brought), weights_only=True)
    assert list(before) == list(state) and not torch.equal(before["linear.weight"], state["linear.weight"])
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def file_of(out, folder, *flags):
    """The trained network of a folder that holds one, as a plain state dict."""
    file = folder / "before.pt"
    done("export-torch", out, file, "--kind", "state_dict", *flags)
    return file


def test_what_nobody_changed_comes_out_bit_for_bit(defended, brought, exported, tmp_path):
    want = read(exported).state
    got = read(file_of(defended, tmp_path, "--imported", brought)).state
    assert list(got) == list(want) and all(got[name].tobytes() == want[name].tobytes() for name in want)


def test_safetensors(defended, brought, population, tmp_path):
    file = tmp_path / "ft.safetensors"
    done("export-torch", defended, file, "--defense", "ft", "--imported", brought)
    found = read(file)
    assert (found.model, found.dataset) == ("cnn", "digits")
    found_ft = member.find(defended, {"defense": "ft"})
    again = recreate.defend(found_ft, member.network(found_ft), images(), str(brought))
    np.testing.assert_array_equal(found.state["linear.weight"].T, again.variables["params"]["linear"]["kernel"])
    done("import-torch", file, "--poison-ratio", "0.1", "--out", tmp_path / "in")
    own = ["--attack", "badnets", "--defense", "none"]
    done("run", "--imported", tmp_path / "in", *own, *RUN, "--out", tmp_path / "out")
    row = records.read(tmp_path / "out").row(0, named=True)
    assert (row["acc"], row["asr"]) == (again.measured["acc"], again.measured["asr"])


def test_a_repair_among_several_rates_and_its_images(population, tmp_path):
    """With --kind attack_result also a repaired network brings the images it is to be measured on."""
    rates = population[1].filter(population[1]["defense"] == "ft")["hyper"].unique().sort().to_list()
    for n, rate in enumerate(rates):
        hyper = json.dumps(dict(reversed(json.loads(rate).items())))  # however it is written
        file = tmp_path / str(n) / "result.pt"
        done("export-torch", population[0], file, "--defense", "ft", "--hyper", hyper, *ONE, "--kind", "attack_result")
        done("import-torch", file, "--poison-ratio", "0.1", "--out", tmp_path / f"in{n}")
        done("run", "--imported", tmp_path / f"in{n}", *RUN, "--defense", "none", "--out", tmp_path / f"out{n}")
        row = records.read(tmp_path / f"out{n}").row(0, named=True)
        assert (row["acc"], row["asr"], row["ra"]) == metrics(population[1], "ft")[0, 0.1, rate]


INSERTING = {
    "npd": ({"plug", "plug_stats"}, ["--config", "npd.epochs=12", "npd.warmup_epochs=1"]),
    "mm_bd": ({"bounds"}, ["--config", "mm_bd.epochs=6", "mm_bd.batch=8", "--hyper", "mm_bd.lr=1", "mm_bd.weight=10"]),
}


@pytest.mark.parametrize("defense", INSERTING)
def test_a_plug_and_bounds_go_out_and_come_back_by_the_commands(brought, tmp_path, defense):
    """What a repair inserts lies in a second file beside the checkpoint; the network that comes back measures the same."""
    added, settings = INSERTING[defense]
    done("run", "--imported", brought, *RUN, "--defense", defense, *settings, "--out", tmp_path / "repaired")
    file = tmp_path / "repaired.pt"
    done("export-torch", tmp_path / "repaired", file, "--defense", defense, "--imported", brought, "--kind", "attack_result")
    done("import-torch", file, "--poison-ratio", "0.1", "--out", tmp_path / "in")
    assert added <= set(import_folder.load(tmp_path / "in").variables[0])
    done("run", "--imported", tmp_path / "in", *RUN, "--defense", "none", "--out", tmp_path / "out")
    row = records.read(tmp_path / "out").row(0, named=True)
    want = member.find(tmp_path / "repaired", {"defense": defense}).row
    assert (row["acc"], row["asr"], row["ra"]) == (want["acc"], want["asr"], want["ra"])
    assert (want["acc"], want["asr"]) != (want["acc_before"], want["asr_before"])


def test_several_files_and_seeds(population, tmp_path):
    files = [tmp_path / str(seed) / "attack_result.pt" for seed in (0, 1)]
    for seed, file in enumerate(files):
        done("export-torch", population[0], file, "--seed", seed, "--poison-ratio", "0.1")
    done("import-torch", *files, "--poison-ratio", "0.1", "--seeds", "0", "1", "--out", tmp_path / "in")
    done("run", "--imported", tmp_path / "in", *RUN, "--defense", "none", "--out", tmp_path / "out")
    want = {key: value for key, value in metrics(population[1], "none").items() if key[1] == 0.1}
    assert metrics(records.read(tmp_path / "out"), "none") == want


def test_mistakes_are_one_line(capsys, population, defended, brought, exported, imported, tmp_path):
    out, file = population[0], tmp_path / "x.pt"
    for arguments, message in (
        ((out, exported, *ONE), "exists already"),
        ((out, file), "4 networks of"),
        ((out, file, "--seed", "7"), "no networks of"),
        ((out, file, "--defense", "fp"), "match defense fp"),
        ((out, file, "--defense", "ft", *ONE), "it holds hyper: {"),
        ((out, file, "--defense", "ft", "--hyper", "0.1", *ONE), "--hyper takes what a record tells"),
        ((out, file, "--defense", "ft", "--hyper", "{lr", *ONE), "--hyper takes what a record tells"),
        ((out, file, "--dataset", "didgits"), "Did you mean 'digits'?"),
        ((tmp_path / "nowhere", file), "is no folder of results"),
        ((out, tmp_path / "x.safetensors", "--kind", "state_dict", *ONE), "ends in .safetensors and no other's does"),
        ((out, file, "--kind", "safetensors", *ONE), "ends in .safetensors"),
        ((out, file, "--imported", brought, *ONE), "is not what this network was imported from"),
        ((defended, file, "--imported", imported), "is not what this network was imported from"),
        ((defended, file, "--imported", tmp_path), "is no import folder"),
        ((defended, file, "--kind", "attack_result"), "name it with --imported"),
    ):
        assert message in refused(capsys, "export-torch", *arguments), arguments
    assert not file.exists()
    for arguments, message in (
        ((exported, "--poison-ratio", "0.1", "--out", brought), "exists already"),
        ((exported, "--poison-ratio", "1.5"), "the poison ratio lies in [0, 1]"),
        ((exported, "--poison-ratio", "0.1", "--dataset", "gtsrb"), "belongs to digits, not to gtsrb"),
        ((exported, "--poison-ratio", "0.1", "--model", "preactresnet18"), "the file holds cnn"),
        ((exported, "--poison-ratio", "0.1", "--seeds", "0", "0"), "seeds must be different"),
        ((tmp_path / "nothing.pt", "--poison-ratio", "0.1"), "there is no file"),
    ):
        flags = () if "--out" in arguments else ("--out", tmp_path / "never")
        assert message in refused(capsys, "import-torch", *arguments, *flags), arguments
    assert not (tmp_path / "never").exists()
