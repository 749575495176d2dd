"""Records on disk: they come back as written, or they are named, moved aside and redone."""

import errno
import os

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.store import atomic, records
from bdjax.store.rows import ADDED, COLUMNS, blank, encoded_masks

CELL, SET = "c" * 24, "s" * 24


def row(member="m0", **fields):
    common = dict(
        cell=CELL, member=member, dataset="digits", train_images=100, test_images=20, model="cnn", width=4, attack="badnets",
        defense="none", profile="corrected", seed=0, ratio=0.1, target=0, hyper="{}", status="ok", acc=0.1 + 0.2, asr=1.0,
        knows_trigger=False, knows_test=False, loss="[1.5,0.25]", created="2025-01-01T00:00:00+00:00",
    )  # fmt: skip
    return blank(**{**common, **fields})


def test_rows_come_back_as_written(tmp_path):
    rows = [row(), row("m1", ratio=0, spc=10, acc=None, status="non_finite", reason="step 3")]
    path = records.write_rows(tmp_path, CELL, SET, rows)
    assert records.read_file(path) == [{**r, "ratio": float(r["ratio"])} for r in rows]
    frame = records.read(tmp_path)
    assert tuple(frame.columns) == tuple(COLUMNS) and frame.height == 2
    assert frame.filter(frame["member"] == "m0")["acc"].item() == 0.1 + 0.2
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{SET}.sha256"}  # no temporary file is left


def test_a_column_that_does_not_exist_is_refused():
    with pytest.raises(KeyError):
        blank(accuracy=1.0)


def test_an_empty_folder_gives_a_frame_with_all_columns(tmp_path):
    assert tuple(records.read(tmp_path).columns) == tuple(COLUMNS)
    with pytest.raises(UserError, match="no folder of records"):
        records.read(tmp_path / "nowhere")


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = records.write_rows(tmp_path, CELL, SET, [row(), row("m1")])
    data, rows = path.read_bytes(), records.read_file(path)
    noticed = 0
    for at in range(0, len(data), 13):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            assert records.read_file(path) == rows
        except atomic.Corrupt:
            noticed += 1
    assert noticed > len(data) // 13 * 0.3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named_and_set_aside(tmp_path, capsys, share):
    path = records.write_rows(tmp_path, CELL, SET, [row()])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert records.read_rows(tmp_path) == []
    assert str(path) in capsys.readouterr().err
    assert not path.exists() and path.with_name(path.name + ".corrupt").exists()
    records.write_rows(tmp_path, CELL, SET, [row()])
    assert len(records.read_rows(tmp_path)) == 1


def test_a_failed_row_gives_way_to_a_finished_one_and_old_rows_to_new_ones(tmp_path):
    records.write_rows(tmp_path, CELL, "a", [row(asr=0.5, created="2025-01-01"), row("m1", asr=0.5)])
    records.write_rows(tmp_path, CELL, "b", [row(asr=0.75, created="2025-01-02")])
    records.write_rows(tmp_path, CELL, "c", [row(asr=None, status="failed", created="2025-01-03")])
    assert [r["asr"] for r in records.read_rows(tmp_path)] == [0.75, 0.5]


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = records.write_rows(tmp_path, CELL, SET, [row()])
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        records.write_rows(tmp_path, CELL, SET, [row(acc=0.0)])
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


def test_a_file_in_the_way_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        atomic.writable(tmp_path / "file" / "out")


def test_soft_masks_keep_their_factors():
    assert encoded_masks({"bn1": np.array([1.0, 0.0, 1.0, 0.0])}) == '{"bn1":{"d":4,"pruned":[1,3]}}'
    assert encoded_masks({"bn1": np.array([0.5, 0.0])}) == '{"bn1":{"d":2,"factors":[0.5,0.0],"pruned":[1]}}'
    assert encoded_masks(None) is None


def test_a_sealed_folder_reads_as_one_that_is_not(tmp_path):
    """The fast way, over files whose bytes are those that were written, gives what reading row by row gives."""
    for number, cell in enumerate(("b", "a", "c")):
        rows = [row(cell=cell, member=f"m{i}", defense=("none", "ft")[i % 2], spc=(None, 3, 2)[i % 3], seed=i) for i in range(5)]
        records.write_rows(tmp_path, cell, f"s{number}", rows)
    records.write_rows(tmp_path, "a", "again", [row(cell="a", member="m0", status="failed", created="2099-01-01T00:00:00+00:00")])
    fast = records.read(tmp_path)
    seals = list(tmp_path.rglob("*.sha256"))
    assert len(seals) == 4 and fast.height == 15
    seals[0].unlink()
    seals[1].write_text("old")
    assert records.read(tmp_path).equals(fast)
    for path in seals:
        path.unlink(missing_ok=True)
    assert records.read(tmp_path).equals(fast)
    assert fast.filter(fast["cell"] == "a")["status"].to_list() == ["ok"] * 5


def without(path, columns):
    """Rewrite a file of rows as a version wrote it that did not have these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{k: v for k, v in row.items() if k not in columns} for row in records.read_file(path)]
    schema = pa.schema([field for field in records.arrow_schema() if field.name not in columns])
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table.replace_schema_metadata({records._DIGEST: records._rows_digest(table.to_pylist())}), path)
    path.with_suffix(".sha256").write_text(records.hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_records_of_a_version_without_the_newest_columns_are_read_with_null_there(tmp_path, capsys, sealed, mixed):
    paths = [records.write_rows(tmp_path, cell, "s", [row(cell=cell, one_class=0.5, classes=10)]) for cell in ("a", "b", "c")]
    for path in paths[: 2 if mixed else 3]:
        without(path, ADDED)
    if not sealed:
        for path in tmp_path.rglob("*.sha256"):
            path.unlink()
    frame = records.read(tmp_path)
    assert tuple(frame.columns) == COLUMNS and frame["acc"].to_list() == [0.1 + 0.2] * 3
    assert frame["one_class"].to_list() == [None, None, 0.5 if mixed else None]
    assert frame.schema == records.frame([]).schema
    assert tuple(records.read_cell(tmp_path, "a")[0][1]) == COLUMNS
    assert capsys.readouterr().err == ""


def test_a_record_without_another_column_is_none(tmp_path, capsys):
    without(records.write_rows(tmp_path, "a", "s", [row(cell="a")]), {"acc"})
    assert records.read(tmp_path).is_empty() and "its columns are not those of a record" in capsys.readouterr().err


def test_a_sealed_file_of_another_version_is_set_aside(tmp_path, capsys):
    import polars as pl

    records.write_rows(tmp_path, "a", "s", [row(cell="a", member="m")])
    path = records.write_rows(tmp_path, "b", "s", [row(cell="b", member="m")])
    pl.read_parquet(path).with_columns(new=1).write_parquet(path)
    path.with_suffix(".sha256").write_text(records.hashlib.sha256(path.read_bytes()).hexdigest())
    assert records.read(tmp_path)["cell"].to_list() == ["a"]
    assert "its columns are not those of a record" in capsys.readouterr().err
