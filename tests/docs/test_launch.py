"""The launch scripts, run with made-up tools in place of SLURM, gcloud and the machines that they start."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.gcloud import parsed
from tests.docs.pages import TOP
from tests.docs.test_commands import parse  # noqa: F401  fixture

LAUNCH = TOP / "experiments" / "launch"
SURVEY = "experiments/survey.py"
# Notes how it was called; gcloud also answers with the next of the states of a queued resource, and with the code of a sweep that
# has ended: after the last state there is one.
TOOL = """#!{python}
import json, pathlib, sys
here, name, words = pathlib.Path(__file__).parent, pathlib.Path(__file__).name, sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
for word in words:
    if word.startswith("startup-script="):
        (here / "startup").write_text(pathlib.Path(word.partition("=")[2]).read_text())
states = here / "states"
left = json.loads(states.read_text()) if states.exists() else []
if words[2:4] == ["queued-resources", "list"]:
    print(left[0])
    states.write_text(json.dumps(left[1:]))
if words[:2] == ["storage", "cat"] and words[2].endswith(".ended"):
    sys.exit(1) if left or not (here / "code").exists() else print((here / "code").read_text())
if name == "curl":
    print((here / "worker").read_text())
if name == "bdjax":
    sys.exit(int((here / "code").read_text()))
"""


@pytest.fixture
def tools(tmp_path):
    """A folder of tools that note how they are called, in place of the machine's."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("gcloud", "srun", "sleep", "curl", "bdjax", "tar", "git"):
        (folder / name).write_text(TOOL.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


def run(tools, script, *words, **more):
    given = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tools.parent), **more}
    return subprocess.run(["bash", str(script), *words], capture_output=True, text=True, env=given, check=False)


def calls(tools, name):
    """The words of every call of a tool; those of gcloud as it understands them."""
    found = [json.loads(line) for line in (tools / "calls").read_text().splitlines()]
    mine = [words[1:] for words in found if words[0] == name]
    return [parsed(words) for words in mine] if name == "gcloud" else mine


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash_that_can_be_executed(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    assert os.access(script, os.X_OK) and "\nset -euo pipefail\n" in script.read_text()


@pytest.mark.parametrize("name", ["slurm_array.sh", "slurm_together.sh"])
def test_slurm_runs_a_sweep(name, tools, parse):  # noqa: F811
    words = (SURVEY, "/shared/out", "/shared/data", "--only", "attack=badnets")
    assert run(tools, LAUNCH / name, *words, SLURM_JOB_ID="7").returncode == 0
    (words,) = calls(tools, "srun")
    given = parse(words[1:])
    assert (words[0], given["out"], given["data_dir"]) == ("bdjax", "/shared/out", "/shared/data")
    assert given.get("coordinator") == ("auto" if name == "slurm_together.sh" else None)


# A step of two seconds that ends with a code at SIGTERM, the command that sends it, and one that notes how it was called.
STEP = """#!/usr/bin/env bash
here=$(dirname "$0")
trap 'exit {code}' TERM
echo $$ > "$here/step.new" && mv "$here/step.new" "$here/step"
for _ in {{1..40}}; do command sleep 0.05; done
"""
SCANCEL = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$@" > "$here/scancelled"
kill -TERM "$(cat "$here/step")"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" > "$(dirname "$0")/controlled"
"""
ARRAY = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}  # one task has the number of the whole array


def signalled(tools, name, number, code, job):
    """A script that gets a signal while its step runs: its exit code, and what it asked of scancel and scontrol."""
    for tool, text in (("srun", STEP.format(code=code)), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    given = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", **job}
    script = subprocess.Popen(["bash", str(LAUNCH / name), SURVEY, "/out", "/data"], env=given)
    deadline = time.monotonic() + 20
    while not (tools / "step").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    script.send_signal(number)
    left = script.wait(timeout=20)
    return left, *(path.read_text().strip() if (path := tools / kind).exists() else "" for kind in ("scancelled", "controlled"))


@pytest.mark.parametrize(
    ("name", "job", "asked_of"),
    [
        ("slurm_array.sh", ARRAY, "7_3"),
        ("slurm_array.sh", {"SLURM_JOB_ID": "8"}, "8"),
        ("slurm_together.sh", {"SLURM_JOB_ID": "9"}, "9"),
    ],
)
def test_a_slurm_job_near_its_time_limit_stops_its_sweep_and_is_queued_again(name, job, asked_of, tools):
    done = signalled(tools, name, signal.SIGUSR1, 143, job)
    assert done == (143, f"--signal=TERM {asked_of}", f"requeue Incomplete {asked_of}")


def test_a_slurm_job_whose_sweep_ends_by_itself_then_is_not_queued_again(tools):
    assert signalled(tools, "slurm_array.sh", signal.SIGUSR1, 0, ARRAY) == (0, "--signal=TERM 7_3", "")


def test_a_slurm_job_that_is_cancelled_or_preempted_waits_for_its_sweep_and_asks_for_nothing(tools):
    """SLURM signals the sweep itself then, and queues a preempted job again."""
    assert signalled(tools, "slurm_together.sh", signal.SIGTERM, 143, {"SLURM_JOB_ID": "9"}) == (0, "", "")


def test_all_hosts_of_a_tpu_run_a_sweep_together(tools, parse):  # noqa: F811
    words = ("pod", "us-west4-a", SURVEY, "gs://bucket/a folder", "/home/me/archives", "--only", "attack=badnets")
    assert run(tools, LAUNCH / "tpu_vm.sh", *words).returncode == 0
    ((command, places, flags),) = calls(tools, "gcloud")
    assert (command, places, flags["--zone"], flags["--worker"]) == ("compute tpus tpu-vm ssh", ["pod"], "us-west4-a", "all")
    change, sweep = flags["--command"].split(" && ")
    program, *rest = shlex.split(sweep)
    given = parse(rest)
    assert change == "cd bdjax" and program == "../bdjax-env/bin/bdjax"
    assert (given["out"], given["data_dir"], given["coordinator"]) == ("gs://bucket/a folder", "/home/me/archives", "auto")


def queue(tools, states, code=0, kind="v5litepod-8"):
    (tools / "states").write_text(json.dumps(states))
    (tools / "code").write_text(str(code))
    more = ("--only", "attack=badnets")
    return run(tools, LAUNCH / "tpu_queue.sh", "survey", "us-west4-a", kind, "gs://bucket/survey/", SURVEY, *more)


def asked(tools):
    """What was done with queued resources."""
    found = [command.split()[-1] for command, _, _ in calls(tools, "gcloud") if "queued" in command]
    return [word for word in found if word != "list"]


def test_a_spot_tpu_that_is_taken_away_is_asked_for_again(tools):
    done = queue(tools, ["", "", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "", "ACTIVE", "ACTIVE"])
    assert done.returncode == 0, done.stderr
    assert asked(tools) == ["create", "delete", "create", "delete"]
    create = next(flags for command, _, flags in calls(tools, "gcloud") if command.endswith("queued-resources create"))
    assert create["--spot"] and create["--accelerator-type"] == "v5litepod-8" and create["--node-id"] == "survey"
    assert create["--runtime-version"] == "v2-alpha-tpuv5-lite"
    assert done.stdout == "survey: the sweep has ended with code 0; results are in gs://bucket/survey/results\n"


def test_the_code_of_a_sweep_that_failed_is_passed_on_and_the_tpu_deleted(tools):
    assert queue(tools, ["", "", "ACTIVE"], code=2).returncode == 2
    assert asked(tools) == ["create", "delete"]


def test_a_queue_that_was_stopped_goes_on(tools):
    """Nothing is uploaded or asked for again."""
    assert queue(tools, ["ACTIVE", "ACTIVE", "ACTIVE"]).returncode == 0
    assert asked(tools) == ["delete"]
    assert not [places for command, places, _ in calls(tools, "gcloud") if command == "storage cp"]


def test_a_type_that_is_not_known_is_refused_before_anything(tools):
    done = queue(tools, [], kind="v1-8")
    assert done.returncode == 2 and "v1-8" in done.stderr and not (tools / "calls").exists()


@pytest.mark.parametrize(("code", "worker", "noted"), [(0, 0, True), (2, 0, True), (143, 0, False), (0, 1, False)])
def test_a_host_runs_the_sweep_and_the_first_notes_its_end(code, worker, noted, tools, tmp_path, parse):  # noqa: F811
    """Also when it fails, but not when a shutdown stops it."""
    queue(tools, ["", "", "ACTIVE"], code)
    (tools / "calls").unlink()
    (tools / "worker").write_text(str(worker))
    home = tmp_path / "home"
    (home / "bdjax-env" / "bin").mkdir(parents=True)
    (home / "bdjax" / "experiments" / "launch").mkdir(parents=True)
    (home / "bdjax" / "experiments" / "launch" / "tpu_setup.sh").write_text("true\n")
    (home / "bdjax-env" / "bin" / "bdjax").write_text(f'#!/bin/sh\nexec "{tools}/bdjax" "$@"\n')
    (home / "bdjax-env" / "bin" / "bdjax").chmod(0o755)
    done = run(tools, tools / "startup", HOME=str(home))
    (words,) = calls(tools, "bdjax")
    given = parse(words)
    assert (given["out"], given["coordinator"]) == ("gs://bucket/survey/results", "auto"), done.stderr
    assert Path(given["data_dir"]) == home / "archives"
    notes = [places for command, places, _ in calls(tools, "gcloud") if command == "storage cp"]
    assert notes == ([["-", "gs://bucket/survey/survey.ended"]] if noted else [])
