"""An imported network measured with a trigger it was not trained with: said on the console, in the records and in the tables."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from bdjax.attacks.table import ATTACKS
from bdjax.cli import main as cli
from bdjax.reporting.tables import board, csv, full, markdown
from bdjax.store import records, rows
from bdjax.sweep.foreign_trigger import shows_no_backdoor, warning
from tests.sweep.small import DATA, EXECUTION, go, grid_of, images, import_of, refused, saved
from tests.sweep.test_imported import predictions

pytestmark = pytest.mark.usefixtures("own_cache")
TOLD = "does not answer the trigger of wanet"


@pytest.fixture(scope="module")
def foreign(population, tmp_path_factory):
    """Networks measured with WaNet, those of seed 0 made to call everything class 3; records, what was printed, the folder."""
    found = import_of(population[0])
    linear = found.variables[0]["params"]["linear"]
    deaf = {"kernel": np.zeros_like(linear["kernel"]), "bias": np.eye(10, dtype=np.float32)[3]}
    made = tuple(
        {**one, "params": {**one["params"], "linear": deaf}} if seed == 0 else one
        for one, (seed, _) in zip(found.variables, found.points, strict=True)
    )
    folder = saved(tmp_path_factory.mktemp("foreign") / "in", found._replace(variables=made))
    printed = io.StringIO()
    grid = grid_of(folder, attack=("wanet",), defense=("clp",))
    return go(grid, folder.parent / "out", stream=printed), printed.getvalue(), folder


@pytest.mark.parametrize(
    ("asr", "target_rate", "classes", "doubtful"),
    [
        (0.10, 0.01, 10, True),  # guessing
        (0.15, 0.01, 10, True),
        (0.16, 0.01, 10, False),
        (0.06, 0.01, 200, True),
        (0.07, 0.01, 200, False),
        (0.34, 0.30, 200, True),  # a network that is fond of the target
        (0.36, 0.30, 200, False),
        (0.99, 0.01, 10, False),
    ],
)
def test_what_counts_as_no_backdoor(asr, target_rate, classes, doubtful):
    assert shows_no_backdoor(asr, target_rate, classes) == doubtful


def test_a_record_tells_the_rate_and_the_warning_before_and_after_the_defense(foreign):
    frame, _, folder = foreign
    test = images().test
    seen = {}
    for row in frame.iter_rows(named=True):
        point = (row["seed"], row["ratio"])
        others = np.asarray(test.labels) != 0
        want = float((predictions(folder, point, test.images) == 0)[others].mean())
        assert row["target_rate"] == pytest.approx(want, rel=1e-6)
        seen[*point, row["defense"]] = row["warning"]
        assert (row["warning"] is not None) == (row["ratio"] > 0 and row["asr_before"] <= max(want, 0.1) + 0.05)
    text = seen[0, 0.1, "none"]
    assert text == seen[0, 0.1, "clp"] and seen[0, 0.0, "none"] is None  # models nobody attacked have nothing to answer
    assert TOLD in text and "The trigger is bdjax's own" in text and "--config wanet.field=FILE" in text
    assert "leave --attack out" in text


def test_the_console_names_the_member_and_both_rates(foreign):
    lines = [line for line in foreign[1].splitlines() if "warning" in line and "seed 0" in line]
    assert len(lines) == 1 and "digits / cnn / wanet (imported): seed 0 ratio 0.1: warning: ASR 0.0 %" in lines[0]
    assert "0.0 % of clean images of other classes are called the target" in lines[0] and TOLD in lines[0]


def test_tables_mark_the_attack_and_say_why(foreign):
    frame = foreign[0]
    told = full(frame)
    marked = [row[told.columns.index("attack")].text for row in told.rows]
    assert sorted(set(marked)) == ["wanet", "wanet§"]  # ratio 0 and 0.1
    assert sum(note.startswith("§ the imported network does not answer") for note in told.notes) == 1
    assert any(note.startswith("Of some networks behind this table: the imported") for note in board(frame).notes)
    assert "wanet§" in markdown(frame) and TOLD in csv(frame)
    assert "§" not in markdown(frame.filter(frame["ratio"] == 0))


def test_the_trigger_can_be_given_and_is_then_the_one_that_is_measured(population, tmp_path):
    """BadNets' own patch as an image file: the networks that were trained with it answer it."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[-3:, -3:] = 255
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    folder = saved(tmp_path / "in", import_of(population[0], triggered=None))
    chosen = [
        "--imported",
        folder,
        "--attack",
        "badnets",
        "--seeds",
        "0",
        "--poison-ratio",
        "0.1",
        *DATA,
        *EXECUTION,
        "--defense",
        "none",
    ]
    given = ["--config", f"badnets.pattern={tmp_path / 'patch.png'}", "--out", tmp_path / "out"]
    assert cli.main(["run", *map(str, chosen), *map(str, given)]) == 0
    (row,) = records.read(tmp_path / "out").iter_rows(named=True)
    want = population[1].filter(
        (population[1]["defense"] == "none") & (population[1]["seed"] == 0) & (population[1]["ratio"] == 0.1)
    )
    assert (row["asr"], row["ra"]) == (want["asr"][0], want["ra"][0])
    told = json.loads(row["config"])["attack"]["config"]
    assert told["pattern"].startswith("sha256:") and str(tmp_path) not in row["config"]


@pytest.mark.parametrize(
    ("attack", "given", "words"),
    [
        ("wanet", {}, ["bdjax's own", "--config wanet.field=FILE"]),
        ("blended", {}, ["bdjax's own", "--config blended.picture=FILE"]),
        ("badnets", {"size": 2}, ["the one given with badnets.size", "--config badnets.pattern=FILE"]),
        ("sig", {}, ["bdjax's own", "--config sig.FIELD=VALUE"]),
    ],
)
def test_the_warning_says_whose_the_trigger_is_and_how_to_give_another(tiny_spec, attack, given, words):
    for there in (False, True):
        text = warning(attack, ATTACKS[attack](tiny_spec, given).config, there)
        assert all(word in text for word in words) and ("leave --attack out" in text) == there and "\n" not in text


def test_records_of_before_have_no_rate_and_no_warning(foreign, tmp_path, monkeypatch):
    """What an earlier version wrote is read with both columns null."""
    old = tuple(name for name in rows.COLUMNS if name not in ("target_rate", "warning"))
    record = foreign[0].row(0, named=True)
    with monkeypatch.context() as patch:
        for module in (rows, records):
            patch.setattr(module, "COLUMNS", old)
        path = records.write_rows(tmp_path, record["cell"], "a" * 24, [{name: record[name] for name in old}])
    (read,) = records.read_rows(tmp_path)
    assert path.is_file() and {**record, "target_rate": None, "warning": None} == read


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_file_of_a_trigger_that_is_not_there_is_one_line(imported, capsys, tmp_path, command):
    settings = ["--attack", "wanet", "--config", f"wanet.field={tmp_path / 'nowhere.npy'}", *DATA, "--out", tmp_path / "out"]
    assert "nowhere.npy is not there" in refused(capsys, command, "--imported", imported, *settings)
