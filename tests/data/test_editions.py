"""Two releases under the same file names: told apart by digest, never mixed, named when they are neither."""

import shutil

import numpy as np
import pytest

from bdjax.data import load, prepare, sizes
from bdjax.data.gtsrb import TEST, TRAIN, TRUTH
from bdjax.data.table import DATASETS
from bdjax.errors import UserError
from tests.data import made_up

ROWS = sum(made_up.COUNTS["gtsrb"]["train"])


@pytest.fixture
def editions(tmp_path, monkeypatch):
    """{edition: its data directory}."""
    homes = {"official": tmp_path / "one", "32x32": tmp_path / "two"}
    for edition, home in homes.items():
        made_up.gtsrb(home / "gtsrb", sizes=(30, 40) if edition == "official" else None)
        if edition == "official":  # the truth of the two must differ, as it does in reality
            made_up.rewrite(home / "gtsrb" / TRUTH, lambda name, data: [(name, data.replace(b"\n", b"\r\n"))])
        made_up.declare(monkeypatch, "gtsrb", edition, home / "gtsrb")
    return homes


def test_each_has_a_cache_of_its_own(editions, tmp_path):
    one, two = load("gtsrb", editions["official"]), load("gtsrb", editions["32x32"])
    assert one.digest != two.digest
    assert sorted(path.name for path in (tmp_path / "cache" / "datasets").iterdir()) == [
        "gtsrb-32x32-archive",
        "gtsrb-official-archive",
    ]
    assert load("gtsrb", editions["official"]).digest == one.digest
    assert load("gtsrb", editions["32x32"]).digest == two.digest


def test_without_archives_the_prepared_one_is_taken_and_two_are_refused(editions):
    first = load("gtsrb", editions["32x32"]).digest
    assert load("gtsrb").digest == first and sizes("gtsrb") == (ROWS, 43)
    load("gtsrb", editions["official"])
    for call in (load, sizes):
        with pytest.raises(UserError, match=r"gtsrb is prepared in 2 editions \(official, 32x32\) and no archives say which"):
            call("gtsrb")


def test_sizes_are_those_of_the_edition_at_hand(tmp_path, monkeypatch):
    assert sizes("tiny_imagenet") == (100_000, 10_000)
    home = tmp_path / "data"
    made_up.tiny_imagenet(home / "tiny-imagenet")
    made_up.declare(monkeypatch, "tiny_imagenet", "subset", home / "tiny-imagenet")
    assert sizes("tiny_imagenet", data_dir=home) == (400, 200)
    assert sizes("tiny_imagenet", data_dir=home, train_images=300) == (300, 200)
    with pytest.raises(UserError, match=r"train_images is 500; tiny_imagenet allows 200 .* to 400"):
        sizes("tiny_imagenet", data_dir=home, train_images=500)
    with pytest.raises(UserError, match=r"train_images is 500; tiny_imagenet allows 200 .* to 400"):
        load("tiny_imagenet", home, train_images=500)
    monkeypatch.setenv("BDJAX_DATA_DIR", str(home))
    assert sizes("tiny_imagenet") == (400, 200)
    with pytest.raises(UserError, match="does not exist"):
        sizes("tiny_imagenet", data_dir=tmp_path / "nowhere")


def test_archives_of_two_editions_in_one_folder_are_refused(editions):
    shutil.copy(editions["32x32"] / "gtsrb" / TEST, editions["official"] / "gtsrb" / TEST)
    with pytest.raises(UserError, match=r"Test_Images.zip is of the edition '32x32', the files beside it are of 'official'"):
        prepare("gtsrb", editions["official"])


def test_archives_whose_names_were_swapped_are_refused(editions):
    folder = editions["32x32"] / "gtsrb"
    (folder / TRAIN).rename(folder / "x")
    (folder / TEST).rename(folder / TRAIN)
    (folder / "x").rename(folder / TEST)
    with pytest.raises(UserError, match=f"{TRAIN} holds {TEST} of the edition '32x32': it was renamed"):
        load("gtsrb", editions["32x32"])


@pytest.mark.parametrize("file", [TRAIN, TEST, TRUTH])
def test_an_altered_archive_is_named_with_what_is_known(editions, file):
    path = editions["official"] / "gtsrb" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = rf"{file} \([\d,]+ bytes\) is truncated or altered: its digest md5 .* \(official md5 .*; 32x32 sha256 .*\); fetch"
    with pytest.raises(UserError, match=message):
        load("gtsrb", editions["official"])


def test_an_archive_under_another_name_is_missing(editions):
    folder = editions["official"] / "gtsrb"
    (folder / TRAIN).rename(folder / "GTSRB-Training.zip")
    message = rf"missing in {folder}: {TRAIN} \(edition official or 32x32\) \(found there: GTSRB-Training.zip, {TRUTH}, {TEST}\)"
    with pytest.raises(UserError, match=message):
        load("gtsrb", editions["official"])


def test_both_kinds_of_cifar10_in_one_folder_mean_the_official_one(data_dir, monkeypatch):
    records = made_up.cifar10_binary(data_dir / "cifar10")
    made_up.declare(monkeypatch, "cifar10", "official", data_dir / "cifar10")
    assert load("cifar10", data_dir).train.labels[:12].tolist() == records["data_batch_1.bin"][:, 0].tolist()


def test_nothing_at_all_names_every_edition(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz \(edition official\) or cifar10-train.zip, .* \(edition jpeg\)"):
        load("cifar10", tmp_path / "data")


def test_every_digest_names_its_kind_and_every_address_a_file():
    for source in DATASETS.values():
        for edition in source.editions:
            assert set(edition.urls) in (set(), set(edition.archives))
            for digest in edition.archives.values():
                kind, _, value = digest.partition(":")
                assert len(value) == {"sha256": 64, "md5": 32}[kind] and int(value, 16)
            for split in ("train", "test"):
                assert len(edition.counts[split]) == source.spec.classes and np.min(edition.counts[split]) > 0
        assert len({edition.name for edition in source.editions}) == len(source.editions)
