"""Fetching: from a server of the test's own, checked, atomic, with advice where it fails."""

import functools
import http.server
import threading

import pytest

from bdjax.data import load, prepare
from bdjax.data.table import DATASETS
from bdjax.errors import UserError
from tests.data import made_up

FILE = "cifar-10-binary.tar.gz"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that is served over HTTP, and what CIFAR-10's official edition names as its address."""
    folder = tmp_path / "site"
    made_up.cifar10_binary(folder)
    made_up.declare(monkeypatch, "cifar10", "official", folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _address(monkeypatch, f"http://127.0.0.1:{server.server_port}/{FILE}")
    yield folder
    server.shutdown()
    server.server_close()


def _address(monkeypatch, url):
    official, *others = DATASETS["cifar10"].editions
    told = (official._replace(urls={FILE: url}), *others)
    monkeypatch.setitem(DATASETS, "cifar10", DATASETS["cifar10"]._replace(editions=told))


def _files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_into_the_cache_where_no_folder_is_given(site, tmp_path, capsys):
    with pytest.raises(UserError, match="add --download"):
        prepare("cifar10")
    folder = prepare("cifar10", download=True)
    assert folder.name == "cifar10-official-archive"
    assert _files(tmp_path / "cache" / "downloads") == [FILE]
    assert (tmp_path / "cache" / "downloads" / "cifar10" / FILE).read_bytes() == (site / FILE).read_bytes()
    assert "fetching http://127.0.0.1:" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert len(load("cifar10").train.labels) == 60  # the fetched archives are found again


def test_into_the_data_directory(site, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    prepare("cifar10", tmp_path / "data", download=True)
    assert _files(tmp_path / "data") == [FILE] and (tmp_path / "data" / "cifar10" / FILE).is_file()
    monkeypatch.setenv("BDJAX_DATA_DIR", str(tmp_path / "other"))
    prepare("cifar10", download=True)
    assert (tmp_path / "other" / "cifar10" / FILE).is_file()


def test_a_local_address_works_and_what_is_there_is_not_fetched(site, tmp_path, monkeypatch, capsys):
    _address(monkeypatch, (site / FILE).as_uri())
    prepare("cifar10", tmp_path / "data", download=True)
    (site / FILE).unlink()
    capsys.readouterr()
    prepare("cifar10", tmp_path / "data", download=True)
    assert capsys.readouterr().err == ""


def test_another_edition_that_is_there_is_used(site, tmp_path, monkeypatch):
    made_up.cifar10_jpeg(tmp_path / "data" / "cifar10")
    made_up.declare(monkeypatch, "cifar10", "jpeg", tmp_path / "data" / "cifar10")
    assert prepare("cifar10", tmp_path / "data", download=True).name == "cifar10-jpeg-archive"
    assert FILE not in _files(tmp_path / "data")


def test_a_wrong_file_is_refused_and_leaves_nothing(site, tmp_path):
    (site / FILE).write_bytes(b"an error page")
    with pytest.raises(
        UserError, match=rf"sends is not the known file: its sha256 is .*; fetch it by other means and put it at .*{FILE}"
    ):
        prepare("cifar10", tmp_path / "data", download=True)
    assert _files(tmp_path / "data") == []


def test_a_file_that_is_not_served_or_a_server_that_is_not_there(site, tmp_path, monkeypatch):
    (site / FILE).unlink()
    with pytest.raises(UserError, match=rf"cannot fetch http.* \(.*404.*\); fetch it by other means and put it at .*{FILE}"):
        prepare("cifar10", tmp_path / "data", download=True)
    _address(monkeypatch, f"http://127.0.0.1:9/{FILE}")
    with pytest.raises(UserError, match=r"cannot fetch http://127.0.0.1:9/.* \(.*refused.*\)"):
        prepare("cifar10", tmp_path / "data", download=True)
    assert _files(tmp_path / "data") == []


def test_another_file_of_that_name_is_not_overwritten(tmp_path, monkeypatch):
    made_up.gtsrb(tmp_path / "site")
    made_up.declare(monkeypatch, "gtsrb", "official", tmp_path / "site")
    official, small = DATASETS["gtsrb"].editions
    told = official._replace(urls={file: (tmp_path / "site" / file).as_uri() for file in official.urls})
    monkeypatch.setitem(DATASETS, "gtsrb", DATASETS["gtsrb"]._replace(editions=(told, small)))
    mine = tmp_path / "data" / "gtsrb" / "GTSRB_Final_Test_GT.zip"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"GTSRB_Final_Test_GT.zip is not the official file of that name; move it away"):
        prepare("gtsrb", tmp_path / "data", download=True)
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    assert prepare("gtsrb", tmp_path / "data", download=True).name == "gtsrb-official-archive"


def test_a_folder_that_cannot_be_made_is_named(site, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write to .*cifar10"):
        prepare("cifar10", tmp_path / "data", download=True)
