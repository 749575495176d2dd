"""The first long run on a device measures what is fastest, once, within its budget; a short one does not."""

import pytest

from bdjax import population
from bdjax.population import Execution
from bdjax.population.autotune import cache
from bdjax.sweep import first_tuning
from bdjax.sweep import run as sweep
from bdjax.sweep.grid import Grid

GRID = Grid(poison_ratio=(0.1,), width=4, epochs=1, batch=50, train_images=100, test_images=50, defense=())
WINNER = Execution("sequential", "native", "scan")


@pytest.fixture
def budgets(tmp_path, monkeypatch):
    """The seconds that were allowed; what is "measured" is remembered as :func:`population.tune` would."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    allowed = []

    def tune(model, *, batch, members, budget_seconds, say):
        allowed.append(budget_seconds)
        say("measured")
        key = cache.tuning_key(model, batch, None)
        tuned = population.Tuned(WINNER, 1.0, (), key, 100, budget_seconds, 1.0, "2031-02-03")
        cache.write(tuned)
        return tuned

    monkeypatch.setattr(population, "tune", tune)
    return allowed


def slow(monkeypatch, seconds):
    """A device on which the grid takes so many seconds."""
    monkeypatch.setattr(first_tuning, "_multiplications_per_second", lambda: _work() / seconds)


def _work():
    from bdjax.models.cnn import cnn
    from bdjax.population.multiplications import forward_macs
    from bdjax.sweep import expand

    (branch,) = expand.cells(GRID)
    assert branch.model.name == cnn.__name__
    return first_tuning.PASSES * 100 * forward_macs(branch.model, branch.model.spec.image_shape[0])


def test_a_long_plan_is_tuned_once_and_says_so(budgets, monkeypatch, tmp_path, capsys):
    slow(monkeypatch, 900)
    sweep.run(GRID, tmp_path / "first")
    text = capsys.readouterr().err
    assert budgets == [pytest.approx(first_tuning.SHARE * 900)] and "for 45 s (--no-tune leaves it out)" in text
    assert "execution of cnn: tuned on 2031-02-03: sequential/native/scan" in text
    sweep.run(GRID, tmp_path / "second")
    assert len(budgets) == 1 and "tuned on 2031-02-03" in capsys.readouterr().err


def test_the_budget_is_a_minute_at_most(budgets, monkeypatch, tmp_path):
    slow(monkeypatch, 1e6)
    sweep.run(GRID, tmp_path / "out")
    assert budgets == [first_tuning.MOST]


@pytest.mark.parametrize(
    ("seconds", "options"),
    [(500, {}), (900, {"tune": False}), (900, {"tuned": False}), (900, {"execution": {"lowering": "native"}})],
    ids=["a short plan", "told not to", "what is remembered is not used", "an execution of the user's own"],
)
def test_else_nothing_is_measured(budgets, monkeypatch, tmp_path, seconds, options):
    slow(monkeypatch, seconds)
    sweep.run(GRID, tmp_path / "out", **options)
    assert not budgets


def test_what_is_finished_is_no_plan(budgets, monkeypatch, tmp_path):
    sweep.run(GRID, tmp_path / "out", tune=False)
    slow(monkeypatch, 900)
    sweep.run(GRID, tmp_path / "out")
    assert not budgets


def test_the_guess_of_a_device_is_a_positive_number():
    assert 1e6 < first_tuning._multiplications_per_second() < 1e16
