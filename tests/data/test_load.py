"""Cache and archives: atomic, checked, named when damaged."""

import errno
import json
import os

import numpy as np
import pytest

from bdjax.data import load, prepare, spec
from bdjax.data.cache import cache_root
from bdjax.data.source import digest
from bdjax.errors import UserError


def _equal(one, other):
    return one.digest == other.digest and all(
        np.array_equal(a, b) for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True)
    )


def test_rows_keep_the_order_of_the_archive(data_dir):
    import io
    import zipfile

    from PIL import Image

    dataset = load("cifar10", data_dir)
    assert dataset.train.labels.tolist() == sorted(list(range(10)) * 6)
    with zipfile.ZipFile(data_dir / "cifar10" / "cifar10-train.zip") as archive:
        for row in (0, 13, 59):
            image = np.asarray(Image.open(io.BytesIO(archive.read(archive.namelist()[row]))))
            np.testing.assert_array_equal(dataset.train.images[row], image)
    assert dataset.digest == digest(dataset.train, dataset.test)
    assert dataset.spec == spec("cifar10")


def test_later_loads_map_the_cache_and_need_no_archive(data_dir, tmp_path):
    first = load("cifar10", data_dir / "cifar10")  # the folder itself is accepted too
    for file in (data_dir / "cifar10").iterdir():
        file.unlink()
    again = load("cifar10")
    assert isinstance(again.train.images, np.memmap) and not again.train.images.flags.writeable
    assert _equal(first, again)
    assert sorted(file.name for file in (tmp_path / "cache" / "datasets" / "cifar10-jpeg-archive").iterdir()) == [
        "manifest.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]
    reduced = load("cifar10", train_images=20)
    assert np.bincount(reduced.train.labels).tolist() == [2] * 10


def test_the_data_directory_comes_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("BDJAX_DATA_DIR", str(data_dir))
    assert len(load("cifar10").train.labels) == 60


def test_prepare_writes_the_cache_and_says_where(data_dir, tmp_path):
    folder = prepare("cifar10", data_dir, cache=tmp_path / "elsewhere")
    assert folder == tmp_path / "elsewhere" / "datasets" / "cifar10-jpeg-archive" and (folder / "manifest.json").is_file()
    assert len(load("cifar10", cache=tmp_path / "elsewhere").train.labels) == 60
    with pytest.raises(UserError, match="nothing to prepare"):
        prepare("digits")


def test_a_data_folder_that_does_not_exist_is_an_error_even_with_a_cache(data_dir, tmp_path):
    load("cifar10", data_dir)
    with pytest.raises(UserError, match="nowhere"):
        load("cifar10", tmp_path / "nowhere")


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def _flip_byte(file):
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [_truncate, _flip_byte, lambda file: file.write_bytes(b"")])
def test_a_damaged_cache_is_named_and_rebuilt(data_dir, tmp_path, capsys, file, damage):
    first = load("cifar10", data_dir)
    expected = [np.array(part) for part in (*first.train, *first.test)]
    damaged = tmp_path / "cache" / "datasets" / "cifar10-jpeg-archive" / file
    if file == "manifest.json" and damage is _flip_byte:
        content = json.loads(damaged.read_bytes())
        content["files"]["train_images.npy"]["sha256"] = "0" * 64
        damaged.write_text(json.dumps(content))
        file = "train_images.npy"  # what then does not fit
    else:
        damage(damaged)
    again = load("cifar10", data_dir)
    assert all(np.array_equal(a, b) for a, b in zip(expected, (*again.train, *again.test), strict=True))
    message = capsys.readouterr().err
    assert file in message and "is damaged" in message and message.count("\n") == 1
    load("cifar10")
    assert capsys.readouterr().err == ""


def test_a_damaged_cache_without_archives_is_an_error(data_dir, tmp_path, capsys):
    load("cifar10", data_dir)
    _truncate(tmp_path / "cache" / "datasets" / "cifar10-jpeg-archive" / "train_images.npy")
    with pytest.raises(UserError, match="bdjax data prepare cifar10 --data-dir DIR"):
        load("cifar10")
    assert "train_images.npy is damaged" in capsys.readouterr().err


def test_a_missing_array_file_is_named_and_rebuilt(data_dir, tmp_path, capsys):
    load("cifar10", data_dir)
    (tmp_path / "cache" / "datasets" / "cifar10-jpeg-archive" / "test_images.npy").unlink()
    assert len(load("cifar10", data_dir).test.labels) == 20
    assert "test_images.npy" in capsys.readouterr().err


def test_other_archives_are_another_cache(data_dir, accept):
    from bdjax.data.table import DATASETS

    first = load("cifar10", data_dir)
    DATASETS["cifar10"] = DATASETS["cifar10"]._replace(version=2)  # the fixture restores the entry
    with pytest.raises(UserError, match="no data directory"):
        load("cifar10")
    assert _equal(first, load("cifar10", data_dir))


@pytest.mark.parametrize("file", ["cifar10-train.zip", "cifar10-test.zip", "labels.txt"])
def test_truncated_archives_are_named(data_dir, tmp_path, file):
    path = data_dir / "cifar10" / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        UserError, match=f"{file} .* is truncated or altered: its digest sha256 .* known edition .jpeg sha256 .*again"
    ):
        load("cifar10", data_dir)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_missing_files_say_what_to_run(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"no data directory is given: run `bdjax data prepare cifar10 --data-dir DIR`"):
        load("cifar10")
    with pytest.raises(UserError, match="does not exist"):
        load("cifar10", tmp_path / "nowhere")
    (data_dir / "cifar10" / "cifar10-test.zip").unlink()
    with pytest.raises(
        UserError,
        match=r"missing in .*: cifar10-test.zip \(edition jpeg\) \(found there: .*\); .* `bdjax data prepare cifar10 --data",
    ):
        load("cifar10", data_dir)


def test_unknown_names_get_the_nearest():
    for call in (load, prepare, spec):
        with pytest.raises(UserError, match="Did you mean 'cifar10'"):
            call("cifar-10")
    with pytest.raises(UserError, match="Did you mean 'archive'"):
        load("cifar10", via="archives")
    with pytest.raises(UserError, match="no archives"):
        load("digits", via="tfds")


def test_a_cache_folder_that_cannot_be_made(data_dir, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write to the cache folder .*file.*BDJAX_CACHE_DIR"):
        load("cifar10", data_dir, cache=tmp_path / "file")


def test_a_full_disk_leaves_no_half_written_cache(data_dir, tmp_path, monkeypatch):
    written = []

    def full(handle):
        written.append(handle)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            load("cifar10", data_dir)
    folder = tmp_path / "cache" / "datasets" / "cifar10-jpeg-archive"
    assert list(folder.iterdir()) == []
    assert len(load("cifar10", data_dir).train.labels) == 60


def test_the_cache_folder_is_chosen_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("BDJAX_CACHE_DIR", raising=False)
    assert cache_root() == tmp_path / "xdg" / "bdjax"
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("BDJAX_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "bdjax"
