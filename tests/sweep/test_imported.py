"""Networks that come from elsewhere are measured and defended as if they had been trained here."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import spec
from bdjax.errors import UserError
from bdjax.models import by_name
from bdjax.reporting.tables import csv, markdown
from bdjax.store import import_folder, records
from bdjax.sweep import imported as imports
from bdjax.sweep import imported_cells, pending
from bdjax.sweep.build import cell_hash
from bdjax.sweep.expand import cells
from tests.sweep.small import POINTS, all_to_all, go, grid_of, images, import_of, metrics, saved, stable

KNOWS = """
from bdjax.types import Defense, Defended


def mine(model, config=None, *, profile="corrected"):
    def defend(key, view, hyper):
        assert view.triggered.shape == view.clean.images.shape
        return Defended(view.variables)

    return Defense(defend, (), frozenset({"clean", "triggered"}))
"""


@pytest.fixture(scope="module")
def stored(imported, tmp_path_factory):
    """The records of the imported networks, measured on the stored images."""
    out = tmp_path_factory.mktemp("stored")
    return out, go(grid_of(imported), out)


def predictions(folder, point, pixels):
    found = import_folder.load(folder)
    model = by_name(found.model, spec(found.dataset), width=found.width)
    variables = found.variables[found.network[found.points.index(point)]]
    return np.asarray(jnp.argmax(model.apply(variables, jnp.asarray(pixels, jnp.float32) / 255).logits, -1))


def test_the_numbers_are_those_of_the_networks_and_the_stored_images(stored, imported):
    _, frame = stored
    test, held = images().test, import_folder.load(imported).triggered
    measured = metrics(frame, "none")
    assert frame.height == 4 + 8 + 4 and set(frame["status"]) == {"ok"} and set(frame["attack"]) == {"stored"}
    assert set(frame["n_clean"]) == {100} and set(frame["n_triggered"]) == {len(held.labels)} == {90}
    for point in POINTS:
        clean, triggered = (predictions(imported, point, pixels) for pixels in (test.images, held.images))
        right, hit, back = clean == test.labels, triggered == held.attack_labels, triggered == held.labels
        want = tuple(float(x.mean()) for x in (right, hit, back))
        np.testing.assert_allclose(measured[(*point, "{}")], want, rtol=1e-7)
    assert len(set(measured.values())) == 4  # four networks: a mixed-up order would show
    assert frame["warning"].null_count() == frame["target_rate"].null_count() == frame.height  # their own triggered images


@pytest.mark.parametrize("defense", ["none", "ft", "clp"])
def test_every_record_is_that_of_the_same_networks_trained_here(population, stored, defense):
    assert metrics(stored[1], defense) == metrics(population[1], defense)


@pytest.mark.parametrize("with_images", [True, False])
def test_our_own_trigger_instead_of_stored_images(population, imported, tmp_path, with_images):
    folder = imported if with_images else saved(tmp_path / "in", import_of(population[0], triggered=None))
    frame = go(grid_of(folder, attack=("badnets",), defense=("clp",)), tmp_path / "out")
    for defense in ("none", "clp"):
        assert metrics(frame, defense) == metrics(population[1], defense)
    assert set(frame["target"]) == {0} and frame["trigger_digest"].null_count() == 0


def test_a_record_says_where_a_network_comes_from_and_no_path(stored, imported):
    _, frame = stored
    row = frame.row(0, named=True)
    assert json.loads(row["config"])["imported"] == import_folder.load(imported).digest
    assert set(frame["target"]) == {0} and frame["poisoned"].null_count() == 16 and set(frame["dataset"]) == {"digits"}
    assert not any(str(imported.parent) in str(value) for row in frame.iter_rows(named=True) for value in row.values())


def test_nothing_is_measured_twice_and_lost_networks_come_back(stored, imported, tmp_path, capfd):
    out = shutil.copytree(stored[0], tmp_path / "out")
    assert stable(go(grid_of(imported), out)) == stable(stored[1])
    assert "0 members to measure, 0 to defend" in capfd.readouterr().err
    shutil.rmtree(out / "models")
    next(p for p in (out / "records").rglob("*.parquet") if defense_of(p) == "clp").unlink()
    assert stable(go(grid_of(imported), out)) == stable(stored[1])
    assert "4 members to measure, 4 to defend" in capfd.readouterr().err


def defense_of(path):
    return records.read_file(path)[0]["defense"]


def test_one_network_for_several_seeds(population, tmp_path):
    both = import_of(population[0], points=((3, 0.1), (8, 0.1)), network=(1, 1), kept=({},) * 4)
    folder = saved(tmp_path / "in", both)
    frame = go(grid_of(folder, seeds=(3, 8), poison_ratio=(0.1,), defense=("ft",)), tmp_path / "out")
    before, after = metrics(frame, "none"), metrics(frame, "ft")
    assert len(set(before.values())) == 1 and next(iter(before.values())) == metrics(population[1], "none")[0, 0.1, "{}"]
    assert len(set(after.values())) > 1  # other clean rows and draws


def hashes(folder, **fields):
    branches = cells(grid_of(folder, **fields))
    return {cell_hash(cell, "0" * 64) for branch in branches for cell in (branch.train, *branch.defenses)}


def test_a_copy_is_the_same_experiment_and_another_network_is_not(population, imported, tmp_path):
    copied = shutil.copytree(imported, tmp_path / "elsewhere")
    assert hashes(copied) == hashes(imported)
    found = import_of(population[0])
    other = saved(tmp_path / "other", found._replace(variables=found.variables[::-1]))
    assert not hashes(other) & hashes(imported)
    fewer = found.triggered._replace(images=found.triggered.images ^ 1)
    assert not hashes(saved(tmp_path / "fewer", found._replace(triggered=fewer))) & hashes(imported)


def test_a_defense_that_sees_the_trigger_needs_one_that_can_be_stamped(imported, tmp_path):
    (tmp_path / "mine.py").write_text(KNOWS)
    name = f"{tmp_path / 'mine.py'}:mine"
    with pytest.raises(UserError, match="sees triggered images: name the attack"):
        go(grid_of(imported, defense=(name,)), tmp_path / "out")
    frame = go(grid_of(imported, attack=("badnets",), defense=(name,)), tmp_path / "out")
    mine = frame.filter(frame["defense"] == name)
    assert set(mine["status"]) == {"ok"} and set(mine["knows_trigger"]) == {True} and mine["der"].to_list() == [0.5] * 4


def test_an_attack_with_a_target_per_class(population, tmp_path):
    folder = saved(tmp_path / "in", import_of(population[0], triggered=all_to_all(images())))
    frame = go(grid_of(folder, defense=("clp",)), tmp_path / "out")
    assert frame["target"].null_count() == 8 and set(frame["n_triggered"]) == {100} and set(frame["status"]) == {"ok"}
    assert "stored" in markdown(frame) and "clp" in csv(frame)


def test_a_network_that_is_not_finite_is_named_and_the_others_go_on(population, tmp_path, capfd):
    found = import_of(population[0])
    broken = {**found.variables[1], "params": {**found.variables[1]["params"]}}
    broken["params"]["linear"] = {name: np.full_like(leaf, np.nan) for name, leaf in broken["params"]["linear"].items()}
    folder = saved(tmp_path / "in", found._replace(variables=(found.variables[0], broken, *found.variables[2:])))
    frame = go(grid_of(folder, defense=("clp",)), tmp_path / "out")
    status = {(r["defense"], r["seed"], r["ratio"]): r["status"] for r in frame.iter_rows(named=True)}
    assert status == {(d, *point): "non_finite" if point == (0, 0.1) else "ok" for d in ("none", "clp") for point in POINTS}
    bad = frame.filter(frame["status"] != "ok")
    assert bad["acc"].null_count() == 2 and all("imported network is not finite" in reason for reason in bad["reason"])
    assert "seed 0 ratio 0.1: the imported network is not finite; the others go on" in capfd.readouterr().err


def test_a_failure_is_a_record(imported, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError("no idea")

    monkeypatch.setattr(imported_cells, "evaluator", lambda *_: broken)
    frame = go(grid_of(imported, defense=("clp",)), tmp_path / "out")
    assert set(frame["status"]) == {"failed"} and "no idea" in capfd.readouterr().err
    monkeypatch.undo()
    assert set(go(grid_of(imported, defense=("clp",)), tmp_path / "out")["status"]) == {"ok"}


def test_what_only_an_export_needs_is_not_read(population, tmp_path):
    kept = tuple({"bn1.num_batches_tracked": np.int64(n)} for n in range(4))
    folder = saved(tmp_path / "in", import_of(population[0], kept=kept))
    (folder / "kept_0.npz").write_bytes(b"harmed")
    assert imports.opened(str(folder)).kept == ({},) * 4
    work = pending.work_of(cells(grid_of(folder))[0], images(), grid_of(folder))
    assert pending.pending(work, tmp_path / "out", pending.Tries()).training
