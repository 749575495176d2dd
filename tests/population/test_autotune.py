"""Tuning: the fastest candidate wins, is cached, and nothing that fails or takes too long stops it."""

import json

import jax
import pytest

from bdjax import population
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.population import Execution, cached, default_execution, execute, forms
from bdjax.population.autotune import cache, candidates
from bdjax.population.autotune.tune import tune

ONE = Execution("sequential", "native", "scan")
TWO = Execution("vmap", "patches", "scan", chunk=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(candidates, "STEPS", (2, 2))


@pytest.fixture
def model(tiny_spec):
    return cnn(tiny_spec, 2)


@pytest.fixture
def calls(monkeypatch):
    """What was executed: (execution, members)."""
    seen, real = [], execute.call

    def call(function, stacked, shared, execution):
        seen.append((execution, population.size(stacked)))
        return real(function, stacked, shared, execution)

    monkeypatch.setattr(execute, "call", call)
    return seen


@pytest.fixture
def pace(monkeypatch):
    """Replaces the clock of the calls: seconds per image by lowering and strategy, and what a first call costs."""
    paces = {}

    def call(function, stacked, shared, execution):
        paces["calls"] = [*paces.get("calls", []), execution]
        if (error := paces.get("error", {}).get((execution.lowering, population.size(stacked)))) is not None:
            raise error
        paces["last"] = execution, population.size(stacked)
        return ()

    def seconds(function):
        function()
        execution, members = paces["last"]
        return members * paces["each"](execution)

    monkeypatch.setattr(execute, "call", call)
    monkeypatch.setattr(candidates, "_seconds", seconds)
    return paces


def rows_by_name(tuned):
    return {population.named(Execution(**row["execution"])): row for row in tuned.rows}


@pytest.mark.slow
def test_real_steps_are_measured_and_the_winner_is_reused_without_measuring(model, calls, tmp_path, monkeypatch):
    said = []
    first = tune(model, batch=4, members=3, budget_seconds=300, candidates=[ONE, TWO], say=said.append)
    assert {(e.strategy, n) for e, n in calls} == {("sequential", 1), ("vmap", 2)} and len(said) == 2
    assert first.execution in (ONE, TWO) and first.rate == max(row["rate"] for row in first.rows) > 0
    assert all(row["compile_seconds"] > 0 and row["reason"] is None for row in first.rows)
    before = len(calls)
    assert tune(model, batch=4, members=3, candidates=[ONE, TWO]) == first == cached(model, 4, candidates=[ONE, TWO])
    assert len(calls) == before
    assert len(list((tmp_path / "cache" / "tuned").iterdir())) == 1  # no temporary file is left
    assert cached(model, 4) is None and cached(model, 5, candidates=[ONE, TWO]) is None  # other work, other key
    assert cached(cnn(model.spec, 4), 4, candidates=[ONE, TWO]) is None
    assert cached(model.rebuild(dtype=jax.numpy.bfloat16), 4, candidates=[ONE, TWO]) is None
    again = []
    monkeypatch.setattr(execute, "call", lambda function, stacked, shared, execution: again.append(execution) or ())
    tune(model, batch=4, members=3, candidates=[ONE, TWO], refresh=True)
    assert set(again) == {ONE, TWO}


def test_forms_meet_first_and_the_fastest_try_other_chunks(model, pace):
    cost = {"patches": 1e-3, "mixed": 2e-3, "unrolled": 3e-3, "native": 4e-3}

    def each(execution):
        at_once = {0: 1.5, 1: 1.5, 4: 1.0, 8: 0.5, 16: 0.7}
        return cost[execution.lowering] * at_once.get(execution.chunk, 1.0) * (100 if execution.devices > 1 else 1)

    pace["each"] = each
    tuned = tune(model, batch=4, members=200, budget_seconds=1000)
    assert tuned.execution == Execution("vmap", "patches", "scan", chunk=8) and tuned.complete
    tried = {(row["execution"]["lowering"], row["execution"]["chunk"]) for row in tuned.rows}
    assert {("patches", c) for c in (1, 4, 8, 16)} <= tried and ("mixed", 4) in tried and ("mixed", 8) not in tried
    assert tuned.rate == pytest.approx(4 * 2 / (cost["patches"] * 0.5))  # images of two steps of four rows
    assert cached(model, 4, members=1000) == tuned


def test_what_was_tuned_for_few_members_does_not_serve_many(model, pace):
    pace["each"] = lambda execution: 1e-3
    tuned = tune(model, batch=4, members=2, budget_seconds=1000)
    assert max(row["execution"]["chunk"] for row in tuned.rows if row["execution"]["devices"] == 1) == 2
    assert cached(model, 4) == cached(model, 4, members=2) == tuned
    assert cached(model, 4, members=3) is None


def test_the_budget_leaves_candidates_out_and_a_larger_one_measures_them(model, pace):
    pace["each"] = lambda execution: 1.0 if execution == ONE else 1e-3
    tuned = tune(model, batch=4, members=2, budget_seconds=1.0, candidates=[ONE, TWO])
    assert tuned.execution == ONE and not tuned.complete
    assert tuned.rows[1]["reason"].startswith("no time:") and tuned.rows[1]["rate"] is None
    count = len(pace["calls"])
    assert tune(model, batch=4, members=2, budget_seconds=1.0, candidates=[ONE, TWO]) == tuned and len(pace["calls"]) == count
    again = tune(model, batch=4, members=2, budget_seconds=100, candidates=[ONE, TWO])
    assert again.execution == TWO and again.complete


def test_a_candidate_that_fails_is_a_row_and_larger_ones_of_its_form_are_not_tried(model, pace):
    pace["each"] = lambda execution: 1e-3
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    pace["error"] = {("patches", 2): full}
    larger, other = TWO._replace(chunk=4), Execution("vmap", "unrolled", "scan", chunk=2)
    tuned = tune(model, batch=4, members=8, candidates=[TWO, larger, other])
    reasons = [row["reason"] for row in tuned.rows]
    assert reasons[0].startswith("failed: JaxRuntimeError: RESOURCE_EXHAUSTED") and "more" not in reasons[0]
    assert reasons[1] == "not tried: 2 at once failed" and reasons[2] is None and tuned.execution == other
    pace["error"][("unrolled", 2)] = full
    with pytest.raises(UserError, match=r"no execution of cnn could be measured; the first: failed: .*RESOURCE_EXHAUSTED"):
        tune(model, batch=4, members=8, candidates=[TWO, other], refresh=True)


def test_a_population_that_cannot_fit_is_not_started(model, pace, monkeypatch):
    pace["each"] = lambda execution: 1e-3
    one = candidates.activation_bytes(model.rebuild(lowering="patches"), 4)
    monkeypatch.setattr(candidates, "device_memory", lambda: int(1.5 * one))
    tuned = tune(model, batch=4, members=8, candidates=[TWO, TWO._replace(chunk=1)])
    assert tuned.rows[0]["reason"].startswith("too large:") and tuned.execution.chunk == 1
    assert all(execution.chunk == 1 for execution in pace["calls"])


def test_activations_are_counted_without_compiling(model):
    few, many = (candidates.activation_bytes(model, batch) for batch in (4, 8))
    convolved = 4 * (8 * 8 * 2 + 4 * 4 * 4 + 2 * 2 * 8)  # float32 outputs of the three convolutions, per row
    assert many > few > 4 * convolved and 1.5 < many / few < 2.1


@pytest.mark.parametrize("harm", ["cut", "lowering", "rate", "other key", "list"])
def test_a_damaged_file_is_named_and_measured_again(model, pace, capsys, harm):
    pace["each"] = lambda execution: 1e-3
    first = tune(model, batch=4, members=2, candidates=[ONE])
    file = cache.path(first.key)
    told = json.loads(file.read_text())
    if harm == "cut":
        file.write_text(file.read_text()[:50])
    elif harm == "list":
        file.write_text("[]")
    else:
        told["execution"]["lowering"] = "im2col" if harm == "lowering" else told["execution"]["lowering"]
        told["rate"] = -1.0 if harm == "rate" else told["rate"]
        told["key"]["batch"] = 7 if harm == "other key" else 4
        file.write_text(json.dumps(told))
    assert cached(model, 4, candidates=[ONE]) is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and str(file) in lines[0] and "damaged" in lines[0]
    count = len(pace["calls"])
    again = tune(model, batch=4, members=2, candidates=[ONE])
    assert len(pace["calls"]) > count and again.execution == ONE
    capsys.readouterr()
    assert cached(model, 4, candidates=[ONE]) == again and not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_measured(model, pace, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to the cache folder"):
        tune(model, batch=4, members=2, candidates=[ONE])
    assert "calls" not in pace


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(batch=0), "at least 1 row"),
        (dict(members=0), "at least 1 row"),
        (dict(budget_seconds=0), "positive number of seconds"),
        (dict(budget_seconds=float("nan")), "positive number of seconds"),
        (dict(candidates=[]), "candidates is empty"),
        (dict(candidates=[Execution("vmapp")]), "Did you mean 'vmap'?"),
        (dict(candidates=[Execution(lowering="patch")]), "Did you mean 'patches'?"),
        (dict(candidates=[Execution(devices=99)]), "devices must lie in"),
    ],
)
def test_mistakes_are_one_line(model, fields, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        tune(model, **{"batch": 4, "members": 2, **fields})
    assert "\n" not in str(error.value)


def test_the_lists_begin_with_the_default_and_can_run_here():
    for name in ("cnn", "preactresnet18"):
        listed = forms(name)
        assert listed[0] == default_execution(model=name)._replace(chunk=0) and len(set(listed)) == len(listed)
        assert all(population.check(form) == form for form in listed)
    for platform, least in (("gpu", {"native", "unrolled", "patches"}), ("tpu", {"native", "unrolled"})):
        listed = forms("cnn", platform)
        assert listed[0] == default_execution(platform, "cnn") and {form.lowering for form in listed} >= least
        assert {form.strategy for form in listed} >= {"vmap", "sequential"}
        assert {form.devices for form in listed} == {jax.local_device_count()}
