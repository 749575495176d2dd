"""A folder of results in an object store holds what one on a disk holds, and whatever goes wrong on the way costs nothing."""

import dataclasses
import shutil
import sys

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.results import member
from bdjax.store import location
from bdjax.store import records as store
from tests.later import some_later
from tests.reporting.sketch import sketch
from tests.sweep import bucket, small
from tests.sweep.bucket import Bucket
from tests.sweep.small import EXECUTION, GRID, refused, stable

URL = "bucket://results/run"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of buckets, one of them with a finished sweep; and its records."""
    bucket.register()
    root = tmp_path_factory.mktemp("buckets")
    (root / "results").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(bucket.ROOT, str(root))
        return root, small.go(GRID, URL)


@pytest.fixture
def buckets(made, tmp_path, monkeypatch):
    """A copy of the bucket with the finished sweep; nobody else sees it."""
    shutil.copytree(made[0] / "results", tmp_path / "results")
    monkeypatch.setenv(bucket.ROOT, str(tmp_path))
    return tmp_path / "results"


@pytest.fixture
def trouble(monkeypatch):
    """Says what happens to requests: a function of (request, key) that may raise."""
    return lambda what: monkeypatch.setattr(Bucket, "trouble", staticmethod(what))


def objects(folder, part=""):
    """{key: its file} of the objects of a bucket."""
    found = {bucket.unquote(path.name): path for path in sorted(folder.iterdir())}
    return {key: path for key, path in found.items() if part in key}


def written(folder):
    return {key: path.stat().st_mtime_ns for key, path in objects(folder).items()}


def again(folder, made):
    """Run the same grid again and see that the records are as they should be."""
    assert stable(small.go(GRID, URL)) == stable(made[1])
    assert not objects(folder, "/claims/")


def harm(path, how, at=0.5):
    """Cut a file in half, or flip a byte of it, which lies at a share of its length."""
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[int(at * len(data))] ^= 255
    path.write_bytes(bytes(data))


def test_its_records_are_those_of_a_folder(made, population):
    assert stable(made[1]) == stable(population[1])


def test_in_the_memory_of_a_process_too(population):
    import fsspec

    url = "memory://bdjax-remote/run"
    try:
        records = small.go(dataclasses.replace(GRID, defense=("clp",), defense_config={}, hyper={}), url)
        kept = population[1].filter(population[1]["defense"].is_in(["none", "clp"]))
        assert stable(records) == stable(kept)
    finally:
        fsspec.filesystem("memory").rm("/bdjax-remote", recursive=True)


def test_a_finished_sweep_writes_nothing_again(made, buckets):
    before = written(buckets)
    again(buckets, made)
    assert written(buckets) == before


@pytest.mark.parametrize("how", some_later(["truncated", "flipped"], ["flipped"]))
def test_a_damaged_record_is_named_quarantined_and_redone(made, buckets, capsys, how):
    key, path = next(iter(objects(buckets, ".parquet").items()))
    harm(path, how, at=0.002)  # among the pages of the first columns: elsewhere may lie what no row depends on
    assert store.read(URL).height < made[1].height
    assert f"bucket://results/{key} is corrupt" in capsys.readouterr().err
    assert objects(buckets, f"{key}.corrupt") and key not in objects(buckets)
    again(buckets, made)


def without_repairs(folder):
    """Take the records of the repairs away, so that the weights are needed again."""
    (trained,) = {key.split("/")[2] for key in objects(folder, "/models/")}
    for key, path in objects(folder, "/records/").items():
        if trained not in key:
            path.unlink()


def largest(folder):
    return max(objects(folder, "/state.").values(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("what", some_later(["manifest", "state", "truncated"], ["manifest", "state"]))
def test_weights_that_are_not_all_there_are_trained_again(made, buckets, capsys, what):
    without_repairs(buckets)
    if what == "manifest":
        next(iter(objects(buckets, "/manifest.json").values())).unlink()  # an upload that never ended is no damage
    elif what == "state":
        largest(buckets).unlink()
    else:
        harm(largest(buckets), what)
    again(buckets, made)
    assert ("is corrupt" in capsys.readouterr().err) == (what != "manifest")
    assert bool(objects(buckets, ".corrupt")) == (what != "manifest")


def test_flipped_weights_are_trained_again_by_the_run_that_reads_them(made, buckets, capsys):
    without_repairs(buckets)
    harm(largest(buckets), "flipped")
    again(buckets, made)
    assert capsys.readouterr().err.count("does not match its checksum") == 1
    assert objects(buckets, ".corrupt/manifest.json") and not objects(buckets, "/claims/")


def test_flipped_weights_stop_who_only_reads_them_and_the_next_run_trains_them_again(made, buckets):
    without_repairs(buckets)
    harm(largest(buckets), "flipped")
    with pytest.raises(UserError, match=r"are damaged \(.* does not match its checksum\); the same run makes them again"):
        member.find(URL, {"seed": 0, "ratio": 0.1})
    assert objects(buckets, ".corrupt/manifest.json") and not objects(buckets, "/claims/")
    again(buckets, made)


def test_an_upload_that_breaks_off_is_one_line_and_leaves_no_checkpoint(made, buckets, trouble):
    for path in objects(buckets).values():
        path.unlink()

    def cut(request, key):
        if request == "put" and "/models/" in key and key.endswith("/manifest.json"):
            raise OSError("the line is dead")

    trouble(cut)
    with pytest.raises(UserError, match=r"cannot reach bucket://.*manifest.json: .*the line is dead; the same command"):
        small.go(GRID, URL)
    assert not objects(buckets, "/models/") and not objects(buckets, "/records/") and not objects(buckets, "/claims/")
    trouble(lambda request, key: None)
    again(buckets, made)


@pytest.mark.parametrize("request_", ["get", "list", "head"])
def test_a_store_out_of_reach_is_no_damage(made, buckets, trouble, capsys, request_):
    def dead(request, key):
        if request == request_ and "records" in key:
            raise ConnectionError("the line is dead")

    trouble(dead)
    before = written(buckets)
    assert "the line is dead" in refused(capsys, "cite", URL)
    assert written(buckets) == before


def test_a_store_that_refuses_is_one_line(buckets, trouble, capsys, monkeypatch):
    sketch(monkeypatch)

    def forbidden(request, key):
        if request == "put":
            raise PermissionError("Access Denied")

    trouble(forbidden)
    command = ("run", "--dataset", "digits", "--model", "cnn", "--attack", "badnets", "--width", "4", *EXECUTION)
    assert "Access Denied" in refused(capsys, *command, "--out", "bucket://results/other")
    assert "Access Denied" in refused(capsys, "report", URL)


def test_a_bucket_that_does_not_exist_is_one_line(buckets, capsys):
    command = ("run", "--dataset", "digits", "--model", "cnn", "--attack", "badnets", "--width", "4", *EXECUTION)
    assert "bucket does not exist" in refused(capsys, *command, "--out", "bucket://nowhere/run")
    assert "no folder of records" in refused(capsys, "report", "bucket://nowhere/run")
    assert "no folder of a sweep" in refused(capsys, "status", "bucket://nowhere/run")


def test_commands_take_the_url(buckets, capsys):
    assert cli.main(["status", URL]) == 0
    assert "bucket://results/run: 3 of 3 cells finished, 16 of 16 members" in capsys.readouterr().out
    assert cli.main(["cite", URL]) == 0
    assert "gu2017badnets" in capsys.readouterr().out
    picked = ["--defense", "clp", "--seed", "1", "--poison-ratio", "0.1"]
    assert cli.main(["reproduce", URL, *picked]) == 0
    assert capsys.readouterr().out.startswith("identical")
    assert cli.main(["pruning-curve", URL, "clp"]) == 0
    assert objects(buckets, "figures/pruning-curve-clp.csv") and objects(buckets, "figures/pruning-curve-clp.png")


def test_the_report_lies_beside_the_records(buckets, capsys, monkeypatch):
    sketch(monkeypatch)
    assert cli.main(["report", URL]) == 0
    assert capsys.readouterr().out == "report in bucket://results/run/index.html\n"
    found = objects(buckets)
    assert found["run/index.html"].read_bytes().startswith(b"<!") and found["run/table.csv"].stat().st_size
    assert [key for key in found if key.startswith("run/figures/") and key.endswith(".png")]


def test_urls_that_lead_nowhere_say_what_to_do(capsys, monkeypatch):
    assert "nope:// is not known" in refused(capsys, "cite", "nope://bucket/run")
    assert "would not see what is written" in refused(capsys, "cite", "simplecache::s3://bucket/run")
    assert "another machine, host" in refused(capsys, "cite", "file://host/run")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert refused(capsys, "cite", "gs://bucket/run").endswith("install it with: pip install gcsfs")
    monkeypatch.setitem(sys.modules, "upath", None)
    assert refused(capsys, "cite", URL).endswith('needs universal-pathlib; install it with: pip install "bdjax[remote]"')


def test_paths_are_of_this_machine(tmp_path):
    assert location.locate(str(tmp_path)) == tmp_path == location.locate(tmp_path)
    assert location.locate((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert location.locate("gs:/bucket").parts == ("gs:", "bucket")
