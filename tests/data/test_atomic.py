"""Atomic writes: what is written is complete under its name or absent, whatever goes wrong, and nothing else is touched."""

import os
import stat
import threading

import pytest

from bdjax.data import atomic


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic.opened(path) as stream:
        stream.write(b"half")
        stream.flush()
        assert not path.exists()
        stream.write(b" and half")
    assert path.read_bytes() == b"half and half" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic.replace_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic.opened(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_when_the_file_is_flushed_leaves_what_was_there(tmp_path, monkeypatch):
    atomic.replace_file(tmp_path / "file", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_replaced_by_a_folder(tmp_path):
    for names in (("a", "b"), ("c",)):
        with atomic.replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name)
        assert {p.name for p in (tmp_path / "folder").iterdir()} == set(names)
    with pytest.raises(ValueError), atomic.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and (tmp_path / "folder" / "c").exists()


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(OSError):
        atomic.replace_file(tmp_path / "folder", b"data")
    assert (tmp_path / "folder" / "mine").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_permissions_are_those_of_the_umask_or_the_owners_alone(tmp_path):
    atomic.replace_file(tmp_path / "shared", b"")
    atomic.replace_file(tmp_path / "own", b"", mode=atomic.OWNER_ONLY)
    (tmp_path / "plain").touch()
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own", "plain")}
    assert modes["shared"] == modes["plain"] and modes["own"] == 0o600


def test_threads_that_write_one_file_at_once_leave_one_of_their_contents(tmp_path):
    contents = [bytes([number]) * 4096 for number in range(8)]
    gate = threading.Barrier(len(contents))

    def write(content):
        gate.wait()
        for _ in range(5):
            atomic.replace_file(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


def test_a_file_system_that_cannot_flush_folders_is_no_obstacle(tmp_path, monkeypatch):
    flush = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    atomic.replace_file(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"
