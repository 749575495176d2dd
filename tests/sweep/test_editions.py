"""A method whose results change has another edition: old records are shown as such and made again."""

import dataclasses
import functools
import itertools
import json
import shutil

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.cli import main as cli
from bdjax.defenses.table import DEFENSES
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.reporting import tables
from bdjax.results import member, pool, recreate
from bdjax.results.pool import leaderboard, without_replaced
from bdjax.results.reproduce import again
from bdjax.store import records as store
from bdjax.store.hashing import canonical, short_hash
from bdjax.store.leases import Leases
from bdjax.sweep import build, editions, expand, manifest, outdated, pending
from bdjax.sweep import status as said
from bdjax.train import assets
from tests.networks import spec
from tests.short import offered
from tests.sweep.small import GRID, go, images, metrics

CELLS = dataclasses.replace(GRID, hyper={})


def raised(monkeypatch, table, name, edition):
    """From now on a method has another edition."""
    make = table[name]
    later = functools.wraps(make)(lambda *a, **k: make(*a, **k)._replace(edition=edition))
    monkeypatch.setitem(table, name, later)
    editions._built.cache_clear()
    editions._changed.cache_clear()


@pytest.fixture(autouse=True)
def forget():
    yield
    editions._built.cache_clear()
    editions._changed.cache_clear()


def hashes():
    (branch,) = expand.cells(CELLS)
    return {
        cell.defense if hasattr(cell, "defense") else "none": build.cell_hash(cell, "d") for cell in (branch.train, *branch[1])
    }


def test_every_method_and_network_has_an_edition():
    made = [ATTACKS[name](spec(), profile=profile) for name, profile in itertools.product(ATTACKS, ("corrected", "reference"))]
    made += [make(spec()) for make in MODELS.values()]
    model = MODELS["cnn"](spec(), 4)
    for profile in ("corrected", "reference"):
        made += [DEFENSES[name](model, profile=profile) for name in DEFENSES if offered(name, profile)]
    assert all(type(one.edition) is int and one.edition >= 1 for one in made)
    assert ATTACKS["wanet"](spec()).edition == 2 and DEFENSES["mm_bd"](model).edition == 2
    resnet = MODELS["preactresnet18"](spec(), 4)
    assert DEFENSES["fmp"](resnet, profile="reference").edition == 2 and DEFENSES["fmp"](resnet).edition == 1
    assert resnet.rebuild(norm_eps=1e-3).edition == resnet.edition


def test_the_first_edition_is_not_in_the_hash_and_a_later_one_is(monkeypatch):
    (branch,) = expand.cells(CELLS)
    assert "edition" not in canonical(build.describe(branch.defenses[0], "d"))
    before = hashes()
    raised(monkeypatch, DEFENSES, "ft", 2)
    after = hashes()
    assert {name for name in before if before[name] != after[name]} == {"ft"}
    raised(monkeypatch, ATTACKS, "badnets", 2)  # every cell of a network holds the attack it was trained with
    assert {name for name in before if before[name] != hashes()[name]} == {"none", "ft", "clp"}


def test_a_networks_edition_is_in_the_hash_of_its_cells(monkeypatch):
    before = hashes()
    raised(monkeypatch, MODELS, "cnn", 2)
    assert not set(before.values()) & set(hashes().values())


def test_the_hashes_of_earlier_editions_are_known(monkeypatch):
    before = hashes()["ft"]
    raised(monkeypatch, DEFENSES, "ft", 3)
    between = hashes()["ft"]
    raised(monkeypatch, ATTACKS, "badnets", 2)
    (branch,) = expand.cells(CELLS)
    description = build.describe(branch.defenses[0], "d")
    found = editions.earlier(description)
    assert len(found) == 5 and {before, between} <= set(found) and short_hash(description) not in found
    assert editions.earlier({"attack": {"name": "x"}}) == ()


def test_what_an_attack_prepares_is_kept_by_its_edition(tiny_dataset):
    import jax

    attack = ATTACKS["ssba"](tiny_dataset.spec)
    places = {assets.place(attack._replace(edition=edition), tiny_dataset, jax.random.key(0)) for edition in (1, 2, 3)}
    assert len(places) == 3


def test_a_trigger_that_a_network_searched_has_a_later_edition_where_the_network_has(monkeypatch):
    from bdjax.models import by_name

    optimised = {"trigger": "optimised", "architecture": "vgg19_bn"}
    assert ATTACKS["low_frequency"](spec(), optimised).edition == 1
    raised(monkeypatch, by_name.__globals__["MODELS"], "vgg19_bn", 2)
    assert ATTACKS["low_frequency"](spec(), optimised).edition == 2
    assert ATTACKS["low_frequency"](spec(), {"architecture": "vgg19_bn"}).edition == 1


@pytest.fixture
def old(population, tmp_path):
    """A folder of finished records and its sweep, made before any edition rose."""
    return shutil.copytree(population[0], tmp_path / "out")


def states(out):
    return {cell.asked.defense: cell.state for cell in said.Watch(out).look().cells}


def test_old_records_are_outdated_in_the_status_and_not_finished(old, monkeypatch, capsys):
    assert states(old) == {"none": "done", "ft": "done", "clp": "done"}
    raised(monkeypatch, DEFENSES, "clp", 2)
    assert states(old) == {"none": "done", "ft": "done", "clp": "outdated"}
    assert cli.main(["status", str(old)]) == 0
    told = capsys.readouterr().out
    assert "2 of 3 cells finished" in told and "the same command goes on" in told
    assert "outdated: 1 cell made with edition 1 of clp, now 2: the same command makes them again" in told


def test_a_run_makes_old_records_again_and_says_why(old, population, monkeypatch, capsys):
    raised(monkeypatch, DEFENSES, "clp", 2)
    frame = go(GRID, old)
    told = capsys.readouterr().err
    assert "0 members to train, 4 to defend" in told
    assert f"4 records of {old} were made with edition 1 of clp, now 2: not counted as finished, made again" in told
    assert metrics(frame, "clp") == metrics(population[1], "clp") and frame.height == population[1].height
    assert states(old) == {"none": "done", "ft": "done", "clp": "done"}
    assert said.notes(said.Watch(old).look()) == [
        "not counted: 1 cell made with edition 1 of clp, now 2: they were asked for again"
    ]
    go(GRID, old)
    assert "made with" not in capsys.readouterr().err  # nothing is left to make
    every = store.read(old)
    assert every.height == population[1].height + 4
    counted = without_replaced(every)
    assert counted.height == population[1].height and set(counted["cell"]) == set(frame["cell"])
    (row,) = [r for r in leaderboard(every).iter_rows(named=True) if r["defense"] == "clp"]
    assert row["runs"] == 2 and not row["outdated"]


def test_tables_mark_old_records_and_say_what_changed(old, monkeypatch):
    records = store.read(old)
    assert "¶" not in tables.markdown(records) and set(pool.table(records)["outdated"]) == {""}
    raised(monkeypatch, ATTACKS, "badnets", 2)
    told = tables.markdown(records)
    assert "| clp¶ |" in told and "| none¶ |" in told
    assert "¶ made with edition 1 of badnets, now 2: the method has been corrected since" in told
    assert "¶ made with" in tables.markdown_of(tables.board(records))
    raised(monkeypatch, DEFENSES, "ft", 2)
    assert "made with edition 1 of badnets, now 2 and edition 1 of ft, now 2" in tables.markdown(records)


def test_a_record_of_an_earlier_edition_is_not_reproduced(old, monkeypatch):
    row = member.record(old, {"defense": "clp", "seed": 0, "ratio": 0.1})
    raised(monkeypatch, DEFENSES, "clp", 2)
    with pytest.raises(UserError, match="was made with edition 1 of clp, now 2: the result would not be that of the record"):
        again(old, row, images())
    found = member.load(old, row)  # the weights are as they were
    with pytest.raises(UserError, match="edition 1 of clp, now 2: the defended network would not be"):
        recreate.defend(found, member.network(found), images())
    recreate.triggered(found, images())
    raised(monkeypatch, ATTACKS, "badnets", 2)
    with pytest.raises(UserError, match="edition 1 of badnets, now 2: the trigger would not be"):
        recreate.triggered(found, images())


def test_what_was_asked_with_earlier_editions_and_never_made_does_not_wait_for_ever(tmp_path, monkeypatch):
    def ask():
        (branch,) = expand.cells(CELLS)
        work = pending.work_of(branch, images(), CELLS)
        with Leases(tmp_path) as mine:
            manifest.write(tmp_path, [work], mine)
        return work

    ask()
    raised(monkeypatch, DEFENSES, "ft", 2)
    work = ask()
    assert [cell.asked.cell for cell in said.Watch(tmp_path).look().cells].count(work.defenses[0][1]) == 1
    assert len(said.Watch(tmp_path).look().cells) == 3
    assert outdated.lines([work], tmp_path) == []  # there is no record of it


def test_records_from_before_editions_are_the_first_and_other_methods_tell_nothing():
    told = {"model": {"name": "cnn"}, "attack": {"name": "wanet", "config": {"target": 0}}, "profile": "corrected"}
    assert editions.said(editions.changed(json.dumps(told))) == "made with edition 1 of wanet, now 2"
    assert editions.changed(json.dumps({**told, "attack": {**told["attack"], "edition": 2}})) == ()
    odd = {"attack": {"name": "wanet", "config": {"gone": 1}}, "profile": "corrected"}  # a field of another version
    assert editions.said(editions.changed(json.dumps(odd))) == "made with edition 1 of wanet, now 2"
    for name in ("stored", "mine.py:mine", "of_another_version"):
        assert editions.changed(json.dumps({**told, "attack": {"name": name, "config": {}}})) == ()
    assert editions.changed(None) == () and editions.changed("{}") == ()
    wide = {**told, "attack": {"name": "badnets", "config": {"target": 4000}}}  # of a data set that is not here
    assert editions.changed(json.dumps(wide)) == ()
