"""Plans: their numbers agree with the grid's cells and with the compiler, and their rates with what was tuned."""

import dataclasses
import json

import pytest

from bdjax import population
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.population import Execution, resolve
from bdjax.population.autotune import cache
from bdjax.store import hashing
from bdjax.sweep import build, estimate, expand, summary
from bdjax.sweep import run as sweep
from bdjax.sweep.estimate import Measuring, overview
from bdjax.sweep.execution import chosen
from bdjax.sweep.grid import Grid
from bdjax.sweep.plan_text import lines
from tests.sweep import small

GRID = Grid(
    attack=("badnets", "blended"), defense=("ft", "fp", "clp"), poison_ratio=(0.0, 0.1), seeds=(0, 1, 2), spc=(2, 10), width=4,
    epochs=3, batch=30, train_images=100, test_images=50, defense_config={"ft": {"epochs": 7}}, hyper={"ft": {"lr": (0.1, 0.01)}},
)  # fmt: skip
COUNT = Measuring(tune=False, memory=False)
WINNER = Execution("sequential", "patches", "scan")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))


def grid_model():
    return build.attacked(expand.cells(GRID)[0].train)[0]


def remember_a_winner(rate=3600.0, execution=WINNER, candidates=None, members=100, **changes):
    key = {**cache.tuning_key(grid_model(), 30, candidates), **changes}
    tuned = population.Tuned(execution, rate, (), key, members, 60.0, 1.0, "2031-02-03")
    cache.write(tuned)
    return tuned


@pytest.fixture
def measured(monkeypatch):
    """What would be measured: candidates; every measurement takes the first and says 7200 images per second."""
    seen = []

    def tune(model, *, candidates=None, **options):
        seen.append((model.name, candidates, options))
        return remember_a_winner(7200.0, (candidates or [WINNER])[0], candidates)

    monkeypatch.setattr(population, "tune", tune)
    return seen


def test_numbers_agree_with_the_cells_of_the_grid():
    found, branches = overview(GRID, measuring=COUNT), expand.cells(GRID)
    assert found.training_cells == len(branches) == 2
    assert found.defense_cells == sum(len(branch.defenses) for branch in branches) == 10
    assert found.compile_buckets == 12 and found.members == 2 * 6
    assert found.experiments == 2 * (2 * 12 + 2 * 6 + 6)  # ft has two learning rates, clp serves every spc
    assert found.images == 2 * 3 * 90 * 6  # three whole batches of 30 in 100 rows
    cell = found.cells[0]
    assert cell.parameter_bytes == summary.member_bytes(grid_model()) and cell.width == 4
    defenses = {(r.defense, r.spc): r for r in cell.defenses}
    assert defenses["ft", 10].images == 7 * 100 * 12 and defenses["ft", 2].images == 7 * 20 * 12
    assert defenses["fp", 10].images == 100 * 90 * 6  # a tenth of the rows is for validation
    assert defenses["clp", None].images is None and found.not_estimated == 2
    assert found.training_hours is None and found.defense_hours is None and cell.rate is None
    fewer = overview(GRID, measuring=COUNT, only={"attack": "blended", "defense": "clp"})
    assert (fewer.training_cells, fewer.defense_cells, fewer.experiments) == (1, 1, 6)
    assert overview(GRID, measuring=COUNT, limit=3).compile_buckets == 3


@pytest.mark.slow
def test_bytes_are_those_of_the_compiled_training(monkeypatch):
    grid = dataclasses.replace(GRID, epochs=1, defense=(), hyper={}, defense_config={}, test_images=10)
    shapes = []
    real = population.footprint

    def footprint(make, model, stacked, shared, execution):
        shapes.append(shared[0])
        return real(make, model, stacked, shared, execution)

    monkeypatch.setattr(population, "footprint", footprint)
    found = overview(grid, measuring=Measuring(tune=False))
    assert len(shapes) == 1  # both attacks poison before the training: one program
    assert shapes[0].train.images.shape == (100, 16, 16, 3) == shapes[0].triggered.shape and shapes[0].test.labels.shape == (10,)
    for cell in found.cells:
        assert cell.member_bytes > cell.parameter_bytes
        assert 0.8 <= cell.members_per_device * cell.member_bytes / population.device_memory() <= 1


def test_hours_follow_from_the_remembered_rate_and_nothing_is_measured(measured):
    remember_a_winner(rate=3600.0)
    found = overview(GRID, measuring=COUNT)
    cell = found.cells[0]
    assert not measured and cell.execution == WINNER and cell.origin == "tuned on 2031-02-03"
    assert cell.hours == pytest.approx(cell.images / 3600 / 3600)
    assert found.training_hours == pytest.approx(found.images / 3600**2)
    images = sum(r.images or 0 for c in found.cells for r in c.defenses)
    assert found.defense_hours == pytest.approx(images / 3600**2)
    text = "\n".join(lines(found))
    for part in ("12 compile buckets", "12 members to train", "84 experiments", "3,600 images/s (measured on 2031-02-03)"):
        assert part in text
    json.dumps(hashing.plain(found), allow_nan=False)
    without = overview(GRID, measuring=COUNT, tuned=False)
    assert without.cells[0].execution == resolve(None, "cnn") and without.cells[0].rate is None
    assert "not measured" in "\n".join(lines(without))


def test_several_devices_count_as_several(measured):
    remember_a_winner(3600.0, Execution("vmap", "patches", "scan", chunk=8, devices=2))
    assert overview(GRID, measuring=COUNT).training_hours == pytest.approx(2 * overview(GRID, measuring=COUNT).images / 3600**2)


def test_models_are_tuned_once_each_and_what_the_user_set_is_what_is_measured(measured):
    now = Measuring(tune=True, budget=5.0, memory=False)
    found = overview(GRID, measuring=now)
    assert len(measured) == 1 and measured[0][:2] == ("cnn", None)
    assert measured[0][2] == {"batch": 30, "members": 6, "budget_seconds": 5.0, "refresh": False, "say": None}
    assert found.cells[0].rate == 7200.0 == found.cells[1].rate
    measured.clear()
    by_hand = overview(GRID, measuring=now, execution={"lowering": "native"})
    expected = WINNER._replace(lowering="native")  # the other fields are those that were tuned
    assert [candidates for _, candidates, _ in measured] == [[expected]] and by_hand.cells[0].execution == expected
    assert by_hand.cells[0].origin == "tuned on 2031-02-03, fields set by hand"


def test_a_remembered_winner_is_taken_unless_the_user_says_otherwise(capsys):
    branch = expand.cells(GRID)[0]
    built = branch.model, branch.attack
    default = resolve(None, "cnn")
    assert chosen(*built, 100, 6, {}) == (default, None)
    tuned = remember_a_winner(members=6)
    assert chosen(*built, 100, 6, {}) == chosen(*built, 100, 6, None) == (WINNER, tuned)
    assert chosen(*built, 100, 6, {"lowering": "native"}).execution == WINNER._replace(lowering="native")
    assert chosen(*built, 100, 6, {}, tuned=False) == (default, None)
    assert chosen(*built, 100, 6, Execution("map", chunk=2)) == (Execution("map", chunk=2), None)
    assert chosen(*built, 100, 7, {}) == (default, None)  # tuned for fewer members
    assert chosen(*built, 20, 6, {}) == (default, None)  # another batch: there are only 20 rows
    with pytest.raises(UserError, match="Did you mean 'native'"):
        chosen(*built, 100, 6, {"lowering": "natve"})
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_run_uses_the_winner_says_so_and_records_it(tmp_path, capsys):
    grid = dataclasses.replace(small.GRID, defense=("clp",), seeds=(0,), hyper={}, defense_config={})
    remember_a_winner(execution=small.HOW, batch=25)
    frame = sweep.run(grid, tmp_path / "out")
    assert "execution of cnn: tuned on 2031-02-03: sequential/native/dispatch (cpu)" in capsys.readouterr().err.splitlines()
    assert {json.loads(text)["lowering"] for text in frame["execution"]} == {"native"}
    remember_a_winner(execution=WINNER, batch=25)  # another winner does not make another cell
    sweep.run(grid, tmp_path / "out")
    assert "0 members to train, 0 to defend" in capsys.readouterr().err


def test_prepared_assets_leave_the_bytes_unknown():
    attack = build.attacked(expand.cells(GRID)[0].train)[1]._replace(prepare=lambda key, dataset: None)
    assert estimate._bytes(cnn(grid_model().spec, 4), attack, (100, 50), Execution()) is None
