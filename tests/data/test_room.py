"""Data sets and the room they need: decoded piece by piece, or refused with the sizes before an image is decoded."""

import shutil
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from bdjax.data import cache, from_arrays, load, prepare, room, source
from bdjax.data.arrays import moments
from bdjax.data.source import digest
from bdjax.errors import UserError
from bdjax.sweep import run
from bdjax.sweep.grid import Grid
from tests.data import layouts

Usage = namedtuple("Usage", "total used free")


def folder(place, rows=30, side=128):
    """Own images in two classes; returns the folder and the bytes of all its images, decoded."""
    for split in ("train", "test"):
        for label in "ab":
            (place / split / label).mkdir(parents=True)
            for row in range(rows // 2):
                Image.new("RGB", (side, side), (row, 2 * row, 255 - row)).save(place / split / label / f"{row:03}.png")
    return place, 2 * rows * side * side * 3


def test_no_more_than_a_piece_is_in_memory(tmp_path, monkeypatch):
    place, total = folder(tmp_path / "own")
    for module in (cache, source):
        monkeypatch.setattr(module, "PIECE", 1 << 17)
    load(str(folder(tmp_path / "first", 2, 8)[0]))  # imports
    tracemalloc.start()
    dataset = load(str(place))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total / 2, (peak, total)
    assert isinstance(dataset.train.images, np.memmap)
    for row in (0, 14, 15, 29):
        assert dataset.train.images[row, 0, 0].tolist() == [row % 15, 2 * (row % 15), 255 - row % 15]


@pytest.mark.parametrize("piece", [1, 100, 1 << 24])
def test_pieces_change_neither_rows_nor_digest_nor_moments(tmp_path, monkeypatch, piece):
    for module in (cache, source):
        monkeypatch.setattr(module, "PIECE", piece)
    dataset = load(str(folder(tmp_path / "own", 6, 5)[0]), cache=tmp_path / str(piece))
    images = np.asarray(dataset.train.images)
    assert digest(dataset.train, dataset.test) == dataset.digest
    shares = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.spec.mean, shares.mean(0), rtol=1e-12)
    assert (dataset.spec.mean, dataset.spec.std) == moments(images)
    again = from_arrays(images, dataset.train.labels, np.asarray(dataset.test.images), dataset.test.labels)
    assert again.digest == dataset.digest


def test_what_exceeds_the_memory_is_refused_before_an_image_is_decoded(tmp_path, monkeypatch):
    place, _ = folder(tmp_path / "own", 4)
    monkeypatch.setattr(room, "host_memory", lambda: 200_000)
    with pytest.raises(UserError, match=r"own: 8 images of 128x128x3 need 384 KiB once .* 195 KiB of memory, .* \"image_size\""):
        load(str(place))
    monkeypatch.setattr(room, "host_memory", lambda: 10**12)
    (place / "dataset.json").write_text('{"image_size": [100000, 100000], "channels": 1}')
    for call in (load, prepare):
        with pytest.raises(
            UserError, match=r"own: 8 images of 100000x100000x1 need 74.5 GiB once they are decoded, and the disk"
        ):
            monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 3 << 30))
            call(str(place))
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_disk_without_room_is_said_with_both_numbers(tmp_path, monkeypatch):
    files, _, _ = layouts.mnist()
    place = layouts.write(tmp_path / "own", files)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 5 << 10))
    with pytest.raises(
        UserError,
        match=r"own: 40 images of 28x28x1 need 31 KiB .* the disk of the cache folder .* has 5 KiB free; set BDJAX_CACHE_DIR",
    ):
        load(str(place))


def test_the_memory_of_a_process_is_the_least_of_its_limits(tmp_path, monkeypatch):
    import os
    import resource

    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = tmp_path / "memory.max"
    monkeypatch.setattr(room, "CGROUPS", (str(group), str(tmp_path / "none")))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert room.host_memory() == whole
    group.write_text("max\n")
    assert room.host_memory() == whole
    group.write_text("12345\n")
    assert room.host_memory() == 12345
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (777, resource.RLIM_INFINITY))
    assert room.host_memory() == 777


def test_images_that_exceed_the_device_are_refused_by_run_and_check(monkeypatch):
    monkeypatch.setattr(run, "device_memory", lambda: 100_000)
    with pytest.raises(
        UserError, match=r"the images of digits need 1 MiB, 98 KiB of the device's memory may be used; reduce --train"
    ):
        run.load(Grid(dataset=("digits",)), "digits", None)
    assert len(run.load(Grid(dataset=("digits",), train_images=50, test_images=20), "digits", None).train.labels) == 50


def test_rows_that_do_not_come_leave_nothing_behind(tmp_path):
    place, _ = folder(tmp_path / "own", 4, 8)
    (place / "test" / "b" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b/001.png cannot be read as an image: it is empty"):
        load(str(place))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
