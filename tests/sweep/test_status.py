"""What `bdjax status` says of a folder: what is done, who is at work, what went wrong, how long it will take."""

import dataclasses

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.store import lease_files, leases, records
from bdjax.store.leases import Leases
from bdjax.store.rows import blank
from bdjax.sweep import expand, manifest, pending
from bdjax.sweep import status as said
from tests.sweep.small import GRID, images

DEFENSES = {"ft": 4, "clp": 4}  # members of its cell: two seeds, two ratios


@pytest.fixture
def asked(tmp_path):
    """A folder of which a sweep of three cells was asked, and its work; nothing was made."""
    grid = dataclasses.replace(GRID, hyper={})
    (branch,) = expand.cells(grid)
    work = pending.work_of(branch, images(), grid)
    with Leases(tmp_path) as mine:
        manifest.write(tmp_path, [work], mine)
    return tmp_path, work


def record(out, cell, points, **fields):
    """Rows of a cell as a run would leave them."""
    rows = []
    for point in points:
        member = pending.member_hash(point)
        given = {"status": "ok", "seconds": 3.0, "compile_seconds": 1.0, "created": "2026-01-01T00:00:00+00:00", **fields}
        rows.append(blank(cell=cell, member=member, seed=point.seed, ratio=point.ratio, hyper="{}", **given))
    records.write_rows(out, cell, cell, rows)


def states(out):
    return {cell.asked.defense: cell.state for cell in said.Watch(out).look().cells}


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of a sweep"):
        said.Watch(tmp_path)


def test_a_cell_is_waiting_then_running_then_done(asked):
    out, work = asked
    assert states(out) == {"none": "waiting", "ft": "waiting", "clp": "waiting"}
    with Leases(out) as mine, mine.lease(work.cell):
        assert states(out)["none"] == "running"
        told = said.headline(said.Watch(out).look(), "here")
        assert told == "here: 0 of 3 cells finished, 0 of 12 members with 1 process"
    record(out, work.cell, work.points)
    assert states(out) == {"none": "done", "ft": "waiting", "clp": "waiting"}


def test_a_cell_that_runs_elsewhere_says_how_far_it_is(asked):
    out, work = asked
    far = leases.own_lease("2026-01-01T00:00:00+00:00", 7, "epoch 120/600")
    (out / "claims" / f"{work.cell}.json").write_bytes(lease_files.encode(far._replace(place="elsewhere", host="far", pid=5)))
    (told,) = said.notes(said.Watch(out).look())
    assert told == ("running: digits / cnn / badnets / none, process 5 on far since 2026-01-01T00:00:00+00:00: epoch 120/600")


def test_a_cell_is_done_when_all_its_members_are(asked):
    out, work = asked
    record(out, work.cell, work.points[:3])
    watch = said.Watch(out)
    assert watch.look().cells[0].state == "waiting" and watch.look().cells[0].statuses == {"ok": 3}
    record(out, work.cell, work.points)  # the same file: the watch reads what changed
    assert watch.look().cells[0].state == "done"


def test_a_lease_of_the_dead_does_not_run(asked):
    out, work = asked
    dead = leases.own_lease("2026-01-01T00:00:00+00:00")._replace(started="1")
    (out / "claims" / f"{work.cell}.json").write_bytes(lease_files.encode(dead))
    assert states(out)["none"] == "waiting"


def test_failed_members_are_told_and_do_not_look_unfinished(asked):
    out, work = asked
    record(out, work.cell, work.points)
    _, name, points = work.defenses[0]
    record(out, name, points, status="failed")
    status = said.Watch(out).look()
    assert states(out) == {"none": "done", "ft": "failed", "clp": "waiting"}
    assert said.notes(status) == ["not ok: digits / cnn / badnets / ft / spc 2: 4 failed"]
    record(out, work.defenses[1][1], work.defenses[1][2], status="infeasible")
    assert states(out)["clp"] == "done" and said.Watch(out).look().left == 0.0


def test_the_time_left_is_that_of_cells_like_it_shared_by_the_processes(asked):
    out, work = asked
    assert said.Watch(out).look().left is None
    record(out, work.cell, work.points)  # 4 s, compilation included: the only cell to go by
    assert said.Watch(out).look().left == 8.0
    name = work.defenses[0][1]
    with Leases(out) as mine, mine.lease(name):
        assert "about 0:08 to go with 1 process" in said.headline(said.Watch(out).look(), "here")
    record(out, name, work.defenses[0][2], seconds=20.0)
    assert said.Watch(out).look().left == pytest.approx((4 + 21) / 2)
    assert "no process is at work" in said.headline(said.Watch(out).look(), "here")


def test_two_sweeps_of_one_folder_count_a_cell_once(asked):
    out, _ = asked
    grid = dataclasses.replace(GRID, hyper={}, seeds=(1, 2))
    (branch,) = expand.cells(grid)
    with Leases(out) as mine:
        manifest.write(out, [pending.work_of(branch, images(), grid)], mine)
    cells = said.Watch(out).look().cells
    assert len(cells) == 3 and {len(cell.asked.members) for cell in cells} == {6}


def test_the_command_prints_a_table_and_watching_ends_when_everything_is_done(asked, capsys):
    out, work = asked
    for cell, points in ((work.cell, work.points), *((name, points) for _, name, points in work.defenses)):
        record(out, cell, points)
    assert cli.main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert "3 of 3 cells finished, 12 of 12 members" in told and "badnets" in told
    assert cli.main(["status", str(out), "--watch"]) == 0
