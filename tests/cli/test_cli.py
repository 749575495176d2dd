"""The command line: each command on embedded data, and one clear line for every mistake."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest

from bdjax.cli import main as cli
from bdjax.population import compilations
from bdjax.results.pool import leaderboard
from bdjax.store import records
from docs.generators.quickstart import difference
from tests.reporting.sketch import sketch
from tests.sweep.shared import programs

FAST = ["--width", "4", "--epochs", "2", "--batch", "25", "--train-images", "100", "--test-images", "50", "--spc", "2"]
LOOP = ["--strategy", "sequential", "--lowering", "native"]
SCENARIO = [*FAST, *LOOP, "--defense", "clp", "--seeds", "0", "1", "--poison-ratio", "0", "0.1"]


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    """Runs of the same cell compile it once."""
    with programs():
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)


def refused(capsys, *arguments):
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("bdjax: error: "), captured.err
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "didgits"], "Did you mean 'digits'?"),
        (["--model", "preactresnet"], "Did you mean 'preactresnet18'?"),
        (["--attack", "badnet"], "Did you mean 'badnets'?"),
        (["--defense", "ft", "fpp"], "Did you mean 'fp'?"),
        (["--profile", "referense"], "Did you mean 'reference'?"),
        (["--poison-ratio", "0.1", "1.5"], "poison ratio 1.5"),
        (["--poison-ratio", "nan"], "poison ratio nan"),
        (["--poison-ratio", "-0.5"], "poison ratio -0.5"),
        (["--seeds", "0", "-1"], "seed -1"),
        (["--spc", "1000"], "spc 1000"),
        (["--spc", "0"], "spc"),
        (["--width", "0"], "width 0"),
        (["--target", "10"], "given 10"),
        (["--train-images", "1000000"], "train_images is 1000000"),
        (["--config", "badnets.tarket=1"], "Did you mean 'target'?"),
        (["--hyper", "ft.lrr=1"], "Did you mean 'lr'?"),
        (["--strategy", "vmapp"], "Did you mean 'vmap'?"),
        (["--devices", "1000"], "devices must lie in"),
        (["--seeds", "0", "--seeds", "1"], "--seeds is given 2 times"),
        (["--defense", "nowhere.py:mine"], "does not exist"),
        (["--dataset", "cifar10"], "no data directory"),
        (["--dataset", "cifar10", "--data-dir", "/nowhere/at/all"], "does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_mistakes_are_one_line(capsys, tmp_path, command, flags, message):
    assert message in refused(capsys, command, "--out", str(tmp_path / "out"), *flags)


def test_a_truncated_archive_is_one_line(capsys, tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name in ("cifar10-train.zip", "cifar10-test.zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("train/cat/0001.jpg", b"x" * 100)
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    (folder / "labels.txt").write_text("cat\n")
    line = refused(capsys, "data", "prepare", "cifar10", "--data-dir", str(tmp_path))
    assert "truncated or altered" in line and "cifar10-train.zip" in line


def test_a_folder_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for command in ("run", "check"):
        assert "cannot write" in refused(capsys, command, *FAST, "--out", str(tmp_path / "file" / "out"))


def test_images_of_a_wrong_shape_are_one_line(capsys, tmp_path, monkeypatch):
    import bdjax.data

    load = bdjax.data.load

    def wrong(*arguments, **options):
        found = load(*arguments, **options)
        return found._replace(train=found.train._replace(images=found.train.images[:, :8]))

    monkeypatch.setattr(bdjax.data, "load", wrong)
    line = refused(capsys, "check", *FAST, "--out", str(tmp_path))
    assert "[100, 8, 16, 3]" in line and "[16, 16, 3]" in line


def test_data_that_changed_are_noticed(capsys, tmp_path, monkeypatch):
    import bdjax.data

    load = bdjax.data.load
    monkeypatch.setattr(bdjax.data, "load", lambda *a, **k: load(*a, **k)._replace(digest="0" * 64))
    assert "do not match their hash" in refused(capsys, "check", *FAST, "--out", str(tmp_path))


def command(*arguments, **options):
    import jax

    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}  # the tests' own
    line = [sys.executable, "-m", "bdjax.cli.main", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, **options)


@pytest.mark.parametrize(("line", "message"), {"ls atacks": "attacks", "": "quickstart"}.items())
def test_a_command_that_lacks_a_word_says_which_there_are(capsys, line, message):
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    told = capsys.readouterr()
    assert left.value.code == 2 and message in told.out + told.err


def test_nobody_sees_a_traceback():
    done = command("run", "--datset", "digits")
    assert done.returncode == 2 and "--dataset" in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow  # several processes, each of which compiles
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    arguments = ["run", *FAST, *LOOP, "--defense", "clp", "--poison-ratio", "0.1", "--out", str(tmp_path / "out")]
    done = command(*arguments, preexec_fn=limit)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("bdjax: error: cannot write") and "File too large" in last, done.stderr
    assert "Traceback" not in done.stderr
    assert command(*arguments).returncode == 0
    assert records.read(tmp_path / "out").height == 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        assert cli.main(["run", *SCENARIO, "--out", str(out)]) == 0
    return out


def test_run_writes_records_and_prints_the_table(results, capsys):
    assert cli.main(["run", *SCENARIO, "--out", str(results)]) == 0
    captured = capsys.readouterr()
    assert "clp" in captured.out and "0 members to train, 0 to defend" in captured.err
    assert records.read(results).height == 8


def test_a_failed_cell_makes_the_exit_code(results, tmp_path, capsys):
    out = shutil.copytree(results, tmp_path / "out")
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax\nimport numpy as np\nfrom bdjax.types import Defense, Defended\n\n\n"
        "def fail():\n    raise RuntimeError('no idea')\n\n\n"
        "def mine(model, config=None, *, profile):\n"
        "    def defend(key, view, hyper):  # it traces, and fails when it runs\n"
        "        one = jax.pure_callback(fail, jax.ShapeDtypeStruct((), np.float32), vmap_method='sequential')\n"
        "        return Defended(jax.tree.map(lambda x: x * one, view.variables))\n\n"
        "    return Defense(defend, (), frozenset())\n"
    )
    assert cli.main(["run", *FAST, *LOOP, "--defense", f"{file}:mine", "--out", str(out)]) == 1
    assert "2 rows failed" in capsys.readouterr().err


def test_sweep_runs_a_file_with_scales_selection_and_overrides(tmp_path, capsys):
    file = tmp_path / "grid.py"
    file.write_text(
        "import dataclasses\nfrom bdjax.sweep.grid import Grid\n"
        "grid = Grid(attack=('badnets', 'blended'), seeds=(0, 1, 2), width=4, epochs=2, batch=25, spc=(2,), test_images=50)\n"
        "small = dataclasses.replace(grid, seeds=(0,), poison_ratio=(0.1,), train_images=100)\n"
    )
    out = str(tmp_path / "out")
    chosen = ["--scale", "small", "--only", "attack=badnets", "defense=clp", "--seeds", "5"]
    assert cli.main(["sweep", str(file), *LOOP, *chosen, "--out", out]) == 0
    frame = records.read(out)
    assert set(frame["attack"]) == {"badnets"} and set(frame["defense"]) == {"none", "clp"} and set(frame["seed"]) == {5}
    assert "no 'grid'" not in capsys.readouterr().err
    assert "axis of only" in refused(capsys, "sweep", str(file), "--only", "atack=badnets", "--out", out)
    assert "limit-cells 0" in refused(capsys, "sweep", str(file), "--limit-cells", "0", "--out", out)
    assert "does not exist" in refused(capsys, "sweep", str(tmp_path / "nothing.py"), "--out", out)
    file.write_text("grid = 3\n")
    (tmp_path / "other.py").write_text("grid = 3\n")
    assert "defines no 'grid'" in refused(capsys, "sweep", str(tmp_path / "other.py"), "--out", out)


@pytest.mark.parametrize("what", ["attacks", "defenses", "models", "datasets"])
def test_ls_lists_everything_also_as_json(capsys, what):
    assert cli.main(["ls", what]) == 0
    text = capsys.readouterr().out
    assert cli.main(["ls", what, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(text.strip().splitlines()) == len(entries) + 1
    for entry in entries:
        assert entry["name"] in text
        if what in ("attacks", "defenses"):
            assert len(entry["paper"]) > 30, f"{entry['name']} names no paper"


def test_check_reports_what_it_found(capsys, tmp_path):
    assert cli.main(["check", *FAST, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    for part in ("match their hash", "16x16x3 to 10 classes", "is writable", "compile buckets", "members fit"):
        assert part in text
    assert not (tmp_path / "out").exists()  # nothing is left behind


def test_report_without_records_is_one_line(capsys, tmp_path):
    assert "holds no records" in refused(capsys, "report", str(tmp_path))
    assert "no folder of records" in refused(capsys, "report", str(tmp_path / "nowhere"))


def test_report_writes_one_page(results, capsys, monkeypatch):
    sketch(monkeypatch)
    assert cli.main(["report", str(results)]) == 0
    page = (results / "index.html").read_text()
    assert "clp" in page and "index.html" in capsys.readouterr().out


def test_compiled_programs_are_kept_unless_jax_was_told_where(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compilations.keep_compilations()
    assert jax.config.jax_compilation_cache_dir == before  # the tests' own setting wins
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilations.keep_compilations()
        assert jax.config.jax_compilation_cache_dir.endswith("compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_quickstart(tmp_path):
    """CI names the folder that the README's own command has made; else it is made here."""
    made = os.environ.get("BDJAX_QUICKSTART_DIR")
    folder = pathlib.Path(made or tmp_path / "quick")
    if not made:
        done = command("quickstart", "--out", str(folder))
        assert done.returncode == 0, done.stderr
    frame = records.read(folder)
    assert frame.height == 48 and set(frame["status"]) == {"ok"}
    attacked = frame.filter((frame["defense"] == "none") & (frame["ratio"] > 0))
    assert attacked["asr"].min() > 0.9 and attacked["acc"].min() > 0.9
    clean = frame.filter((frame["defense"] == "none") & (frame["ratio"] == 0.0))
    assert clean["asr"].max() < 0.1
    board = dict(leaderboard(frame).select("defense", "mitigated").rows())
    assert board["mm_bd"] >= 0.75 and board["ft"] == 0  # one removes the backdoor and one does not, as README says
    assert (folder / "index.html").stat().st_size > 10_000
    assert difference(folder) < 0.03  # README's picture; rounding moves its dots a little: python -m docs.generators.quickstart


PLANNED = [*FAST, "--seeds", "0", "1", "--poison-ratio", "0", "0.1"]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    from bdjax.population.autotune import candidates

    monkeypatch.setattr(candidates, "STEPS", (2, 2))


def test_plan_counts_without_measuring_and_says_what_is_missing(capsys, tmp_path, empty_cache):
    assert cli.main(["plan", *PLANNED, "--no-tune", "--no-memory"]) == 0
    captured = capsys.readouterr()
    for part in ("1 training cells, 3 defense cells: 4 compile buckets", "4 members to train, 12 experiments", "not measured"):
        assert part in captured.out
    assert captured.err == "" and not (tmp_path / "cache" / "tuned").exists()


def test_plan_measures_what_it_was_asked_about_and_remembers_it(capsys, empty_cache):
    arguments = ["plan", *PLANNED, *LOOP, "--loop", "scan", "--no-memory", "--json"]
    assert cli.main([*arguments, "--budget", "60"]) == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    (cell,) = first["cells"]
    assert cell["rate"] > 0 and cell["execution"]["strategy"] == "sequential" and "images/s" in captured.err
    assert first["training_hours"] == pytest.approx(cell["images"] / cell["rate"] / 3600)
    assert cli.main([*arguments, "--no-tune"]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_plan_of_a_file_is_cut_as_a_sweep_is(capsys, tmp_path, empty_cache):
    file = tmp_path / "grid.py"
    file.write_text(
        "import dataclasses\nfrom bdjax.sweep.grid import Grid\n"
        "grid = Grid(attack=('badnets', 'blended'), seeds=(0, 1, 2), width=4)\n"
        "small = dataclasses.replace(grid, seeds=(0,), train_images=100)\n"
    )
    quick = ["--no-tune", "--no-memory", "--json"]

    def planned(*flags):
        assert cli.main(["plan", str(file), *quick, *flags]) == 0
        return json.loads(capsys.readouterr().out)

    assert planned()["compile_buckets"] == 8 and planned("--scale", "small")["members"] == 2 * 2
    assert planned("--only", "attack=blended")["training_cells"] == 1 and planned("--limit-cells", "3")["compile_buckets"] == 3
    assert planned("--seeds", "7")["members"] == 2 * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "cn"], "Did you mean 'cnn'?"),
        (["--lowering", "natve"], "Did you mean 'native'?"),
        (["--train-images", "1000000"], "train_images is 1000000"),
        (["--only", "atack=badnets"], "axis of only"),
        (["--limit-cells", "0"], "limit-cells 0"),
        (["nowhere.py"], "does not exist"),
        (["--budget", "0", "--no-memory"], "positive number of seconds"),
        (["--no-tune", "--refresh"], "--no-tune measures nothing"),
        (["--no-tune", "--budget", "3"], "--no-tune measures nothing"),
    ],
)
def test_mistakes_of_a_plan_are_one_line(capsys, empty_cache, flags, message):
    quiet = [] if "--budget" in flags or "--no-tune" in flags else ["--no-tune"]
    file, flags = (flags, []) if flags[0].endswith(".py") else ([], flags)
    assert message in refused(capsys, "plan", *file, "--width", "4", *flags, *quiet)


def test_tuned_winners_are_used_unless_told_otherwise(capsys, tmp_path, empty_cache):
    from bdjax.data import spec
    from bdjax.models.cnn import cnn
    from bdjax.population import Execution, Tuned
    from bdjax.population.autotune import cache

    key = cache.tuning_key(cnn(spec("digits"), 4), 25, None)
    cache.write(Tuned(Execution("sequential", "native", "dispatch"), 1.0, (), key, 99, 60.0, 1.0, "2031-02-03"))
    arguments = ["check", *PLANNED, "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert "execution of cnn: tuned on 2031-02-03: sequential/native/dispatch (cpu)" in capsys.readouterr().out
    assert cli.main([*arguments, "--lowering", "patches"]) == 0
    assert "tuned on 2031-02-03, fields set by hand: sequential/patches/dispatch" in capsys.readouterr().out
    assert cli.main([*arguments, "--no-tuned"]) == 0
    assert "execution of cnn: not tuned" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error():
    survey = Path(__file__).parents[2] / "experiments" / "survey.py"  # its plan is longer than what a pipe holds
    plan = f"{sys.executable} -m bdjax.cli.main plan {survey} --no-tune --no-memory"
    done = subprocess.run(
        ["bash", "-c", f"{plan} | head -c 1; echo -n ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=240
    )
    assert done.stdout == "9141" and done.stderr == ""
