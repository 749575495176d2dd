"""A sweep end to end on a few images: what runs, what is read back, and what happens when something goes wrong."""

import dataclasses
import json
import os

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.store import checkpoints, records
from tests.sweep.small import GRID, TOGETHER, go, stable


def changed(grid=GRID, **fields):
    if "ft" not in fields.get("defense", ("ft",)):
        fields = {"defense_config": {}, "hyper": {}, **fields}
    return dataclasses.replace(grid, **fields)


@pytest.fixture(scope="module")
def first(population):
    return population


def files(out):
    return {p: p.stat().st_mtime_ns for p in sorted(out.rglob("*")) if p.is_file() and p.name != ".lock"}


def copy(source, target):
    import shutil

    return shutil.copytree(source, target)


def test_every_member_has_a_row_per_cell(first):
    _, frame = first
    assert frame.height == 16 and set(frame["status"]) == {"ok"}
    by = {key: part for (key,), part in frame.group_by("defense")}
    assert set(by) == {"none", "ft", "clp"}
    assert by["none"]["loss"].null_count() == 0 and len(json.loads(by["none"]["loss"][0])) == 4
    assert set(by["none"]["images"]) == {4 * 200 * 4} and set(by["none"]["members"]) == {4}
    assert by["clp"]["spc"].null_count() == 4 and set(by["ft"]["spc"]) == {2}
    assert sorted(by["ft"]["poisoned"]) == [0] * 4 + [20] * 4
    assert set(frame["n_clean"]) == {100} and set(frame["n_triggered"]) == {90}


def test_the_log_of_a_run_says_what_happened(first):
    logs = sorted((first[0] / "logs").glob("*.jsonl"))
    lines = [json.loads(line) for line in logs[0].read_text().splitlines()]
    assert [lines[0]["event"], lines[1]["event"], lines[-1]["event"]] == ["run", "cell", "end"]
    assert lines[0]["cells"] == 3 and lines[0]["pid"] == os.getpid() and lines[-1] == {**lines[-1], "done": 3, "error": None}
    assert [line["kind"] for line in lines if line["event"] == "cell"] == ["train", "ft", "clp"]
    last = [line for line in lines if line["event"] == "epoch"][-1]
    assert (last["epoch"], last["epochs"], last["part"], last["parts"], last["title"]) == (4, 4, 4, 4, "digits / cnn / badnets")
    assert last["loss_min"] <= last["loss_median"] <= last["loss_max"] and last["cell"] in set(first[1]["cell"])
    assert any(line["event"] == "checkpoint" and line["seconds"] > 0 for line in lines)


def test_numbers_before_are_those_of_the_training_cell_and_metrics_follow_from_them(first):
    _, frame = first
    rows = list(frame.iter_rows(named=True))
    before = {(r["seed"], r["ratio"]): r for r in rows if r["defense"] == "none"}
    for r in rows:
        base = before[r["seed"], r["ratio"]]
        assert (r["acc_before"], r["asr_before"], r["ra_before"]) == (base["acc"], base["asr"], base["ra"])
        der = (max(0.0, r["asr_before"] - r["asr"]) - max(0.0, r["acc_before"] - r["acc"]) + 1) / 2
        assert r["der"] == pytest.approx(der, abs=1e-12)
        assert r["acc"] * 100 == pytest.approx(round(r["acc"] * 100), abs=1e-9)
    assert {r["defense"] for r in rows if r["masks"]} == {"clp"}
    assert {json.loads(r["hyper"])["lr"] for r in rows if r["defense"] == "ft"} == {0.01, 0.1}


def test_provenance_is_complete(first):
    _, frame = first
    for name in "config execution versions device data_digest trigger_digest created seconds compile_seconds".split():  # noqa: SIM905
        assert frame[name].null_count() == 0, name
    config = json.loads(frame.filter(frame["defense"] == "ft")["config"][0])
    assert config["defense"]["config"]["epochs"] == 2 and config["recipe"]["batch"] == 25
    assert "jax" in json.loads(frame["versions"][0])


def test_nothing_runs_twice(first, capfd):
    out, frame = first
    before = files(out)
    assert stable(go(GRID, out)) == stable(frame)
    assert files(out) == before
    assert "0 members to train, 0 to defend" in capfd.readouterr().err


def test_a_grid_can_be_extended(first, tmp_path):
    out = copy(first[0], tmp_path / "more")
    before = files(out)
    wider = changed(seeds=(0, 1, 2), poison_ratio=(0.0, 0.1, 0.2), hyper={"ft": {"lr": (0.01, 0.05)}})
    frame = go(wider, out)
    assert frame.height == 9 + 18 + 9 and set(frame["status"]) == {"ok"}
    assert {p: t for p, t in files(out).items() if p in before} == before
    new = frame.filter(frame["defense"] == "none")
    assert sorted(new["members"]) == [4] * 4 + [5] * 5  # only the five new members were trained
    old = {(r["cell"], r["member"]): r for r in stable(first[1])}
    assert all(old.get((r["cell"], r["member"]), r) == r for r in stable(frame))


def compare(together, first):
    alone = {(r["cell"], r["member"]): r for r in first[1].iter_rows(named=True)}
    for row in together.iter_rows(named=True):
        same = alone[row["cell"], row["member"]]
        assert abs(row["acc"] - same["acc"]) <= 0.04 and row["poisoned"] == same["poisoned"]  # to float error: a test row or two
        if row["defense"] == "none":
            np.testing.assert_allclose(json.loads(row["loss"]), json.loads(same["loss"]), rtol=1e-4)


def test_a_repair_does_not_depend_on_its_company(first, together):
    frame = together[1].filter(together[1]["defense"] == "clp")
    assert frame.height == 4 and all(json.loads(execution)["strategy"] == "vmap" for execution in frame["execution"])
    compare(frame, first)


@pytest.mark.slow  # training and tuning two members in one program
def test_a_member_does_not_depend_on_its_company(first, tmp_path):
    pair = changed(seeds=(1,), defense=("ft",), hyper={"ft": {"lr": (0.01,)}})
    together = go(pair, tmp_path, execution=TOGETHER._replace(chunk=2))
    assert together.height == 4
    compare(together, first)


def test_a_corrupt_record_is_redone_and_ends_the_same(first, tmp_path, capfd):
    out = copy(first[0], tmp_path / "harmed")
    victim = sorted((out / "records").rglob("*.parquet"))
    for path in victim:
        path.write_bytes(path.read_bytes()[:-20])
    assert stable(go(GRID, out)) == stable(first[1])
    err = capfd.readouterr().err
    assert all(str(path) in err for path in victim)


def test_trained_members_that_are_gone_are_trained_again_only_if_needed(first, tmp_path, capfd):
    out = copy(first[0], tmp_path / "harmed")
    (state,) = (out / "models").rglob("manifest.json")
    state.unlink()
    go(GRID, out)
    assert "0 members to train" in capfd.readouterr().err  # all records are there: nobody needs the members
    ft = next(p for p in (out / "records").rglob("*.parquet") if records.read_file(p)[0]["defense"] == "ft")
    ft.unlink()
    assert stable(go(GRID, out)) == stable(first[1])
    err = capfd.readouterr().err
    assert "4 members to train, 8 to defend" in err and "is corrupt" in err


DEFENSE = """
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax.types import Defense, Defended


class Hyper(NamedTuple):
    factor: object = jnp.float32(1)


class Trace(NamedTuple):
    factor: object


def mine(model, config=None, *, profile="corrected"):
    def defend(key, view, hyper):
        {body}

    return Defense(defend, Hyper(), frozenset())
"""
FAIL = """def fail():  # it can be traced, and fails when it runs
            raise RuntimeError("no idea")

        one = jax.pure_callback(fail, jax.ShapeDtypeStruct((), "float32"), vmap_method="sequential")
        return Defended(jax.tree.map(lambda p: p * one, view.variables))"""
SCALE = """params = jax.tree.map(lambda p: p * hyper.factor * hyper.factor, view.variables["params"])
        return Defended({**view.variables, "params": params}, None, Trace(hyper.factor))"""


def test_a_failing_defense_leaves_failed_rows_and_the_others_go_on(first, tmp_path, capfd):
    out = copy(first[0], tmp_path / "failing")
    file = tmp_path / "mine.py"
    file.write_text(DEFENSE.replace("{body}", FAIL))
    frame = go(changed(defense=(f"{file}:mine", "ft"), hyper={}), out)
    failed = frame.filter(frame["status"] == "failed")
    assert failed.height == 4 and failed["acc"].null_count() == 4
    assert all(reason and "\n" not in reason for reason in failed["reason"])
    assert frame.filter(frame["defense"] == "ft").height == 4
    told = next((out / "failures").iterdir()).read_text()
    assert "failed: " in capfd.readouterr().err and "Traceback" in told and "RuntimeError: no idea" in told
    again = go(changed(defense=(f"{file}:mine", "ft"), hyper={}), out)  # tried again: it is no finished record
    assert again.filter(again["status"] == "failed").height == 4 and "4 to defend" in capfd.readouterr().err


def test_a_member_that_is_not_finite_is_named_and_the_others_go_on(first, tmp_path, capfd):
    out = copy(first[0], tmp_path / "wild")
    file = tmp_path / "mine.py"
    file.write_text(DEFENSE.replace("{body}", SCALE))
    name = f"{file}:mine"
    frame = go(changed(defense=(name,), hyper={name: {"factor": (1.0, 1e38)}}), out)
    mine = frame.filter(frame["defense"] == name)
    assert mine.height == 8
    for row in mine.iter_rows(named=True):
        wild = json.loads(row["hyper"])["factor"] != 1.0
        assert row["status"] == ("non_finite" if wild else "ok") and (row["acc"] is None) == wild
        if not wild:
            assert row["acc"] == row["acc_before"] and row["der"] == 0.5 and json.loads(row["trace"]) == {"factor": 1.0}
    assert "not finite" in capfd.readouterr().err


def test_a_diverged_training_is_a_record_and_passes_its_status_on(tmp_path):
    frame = go(changed(recipe={"lr": 1e30}, seeds=(0,), poison_ratio=(0.1,), hyper={}), tmp_path)
    assert set(frame["status"]) == {"non_finite"} and frame.height == 3 and frame["acc"].null_count() == 3
    assert all("is not finite from step" in reason for reason in frame["reason"])


@pytest.mark.slow  # trains an attack of its own
def test_a_preparation_that_is_not_finite_makes_the_members_of_its_seed_non_finite(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax\nimport jax.numpy as jnp\nfrom bdjax.attacks.badnets.badnets import badnets\n\n\n"
        "def mine(spec, config=None, *, profile='corrected'):\n"
        "    attack = badnets(spec, config, profile=profile)\n"
        "    def prepare(key, dataset):\n"
        "        draw = jax.random.uniform(key)\n"
        "        return {'draw': draw, 'stopped': jnp.where(draw > 0.5, 7, -1).astype(jnp.int32)}\n"
        "    recipe = attack.recipe._replace(prepare_per='seed', shared_trigger=False)\n"
        "    return attack._replace(prepare=prepare, recipe=recipe, init=lambda key, assets: {'draw': assets['draw']})\n"
    )
    frame = go(changed(attack=(f"{file}:mine",), defense=("clp",), seeds=(0, 1, 2, 3), poison_ratio=(0.1,)), tmp_path / "out")
    trained = {row["seed"]: row for row in frame.filter(frame["defense"] == "none").iter_rows(named=True)}
    assert {row["status"] for row in trained.values()} == {"ok", "non_finite"}
    for row in trained.values():
        wild = row["status"] == "non_finite"
        assert (row["reason"] or "").endswith("from step 7 of the attack's preparation") == wild and (row["acc"] is None) == wild
    repaired = {row["seed"]: row["status"] for row in frame.filter(frame["defense"] == "clp").iter_rows(named=True)}
    assert repaired == {seed: row["status"] for seed, row in trained.items()}


def test_a_clean_subset_larger_than_a_class_is_a_record_in_a_sweep_and_an_error_in_a_run(first, tmp_path):
    out = copy(first[0], tmp_path / "many")
    frame = go(changed(spc=(2, 21)), out)
    many = frame.filter(frame["spc"] == 21)
    assert set(many["status"]) == {"infeasible"} and many.height == 8 and "spc 21" in many["reason"][0]
    assert set(frame.filter(frame["spc"] == 2)["status"]) == {"ok"}
    with pytest.raises(UserError, match="spc 21"):
        go(changed(spc=(2, 21)), tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_members_whose_poison_set_cannot_be_drawn_are_infeasible_and_not_trained(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax.numpy as jnp\nfrom bdjax.attacks.badnets.badnets import badnets\n\n\n"
        "def mine(spec, config=None, *, profile='corrected'):\n"
        "    attack = badnets(spec, config, profile=profile)\n"
        "    def select(key, labels, count):\n"
        "        mask, ok = attack.select(key, labels, count)\n"
        "        return mask, ok & (count < 20)\n"
        "    return attack._replace(select=select)\n"
    )
    grid = changed(attack=(f"{file}:mine",), defense=("clp",), seeds=(0,))
    frame = go(grid, tmp_path / "out")
    status = {(r["defense"], r["ratio"]): r["status"] for r in frame.iter_rows(named=True)}
    assert status == {("none", 0.0): "ok", ("none", 0.1): "infeasible", ("clp", 0.0): "ok", ("clp", 0.1): "infeasible"}
    reasons = frame.filter(frame["status"] == "infeasible")["reason"].to_list()
    assert all("cannot poison 20 rows" in reason for reason in reasons)
    assert frame.filter((frame["defense"] == "none") & (frame["ratio"] == 0.0))["members"][0] == 1


def test_an_interrupt_passes_through(first, tmp_path, monkeypatch):
    out = copy(first[0], tmp_path / "stopped")
    file = tmp_path / "mine.py"
    file.write_text(DEFENSE.replace("{body}", "raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        go(changed(defense=(f"{file}:mine",)), out)


def test_a_checkpoint_that_cannot_be_written_stops_with_one_line(tmp_path, monkeypatch):
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        go(changed(seeds=(0,), poison_ratio=(0.1,), defense=("clp",)), tmp_path)
    monkeypatch.undo()
    assert go(changed(seeds=(0,), poison_ratio=(0.1,), defense=("clp",)), tmp_path).height == 2
