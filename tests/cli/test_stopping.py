"""Ctrl-C and SIGTERM end a command within seconds, also where Python itself cannot answer; only the command's own process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bdjax.cli import main as cli
from bdjax.cli import stopping
from bdjax.store import records

LINE = "bdjax: stopped; the same command goes on where this one stopped"
# A call into C that no signal interrupts, as a compiled program is: a mutex that is locked twice.
BLOCKED = """
import ctypes, threading
def blocked():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    threading.Timer(0.5, lambda: print("begun", flush=True)).start()  # when the next call is under way
    libc.pthread_mutex_lock(mutex)
"""
ALONE = """
import sys, time
from bdjax.cli import stopping
with stopping.answered("stopped", watched=True) as stop:
    try:
        {body}
    except KeyboardInterrupt:
        sys.exit(stop.leave())
"""
SLEEPING = """
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("left", flush=True)
"""
LEASING = """
import sys
from pathlib import Path
from bdjax.cli import main as cli
from bdjax.store.leases import Leases

def command(arguments):
    with Leases(Path(arguments[2])) as leases, leases.lease("cell"):
        (Path(arguments[2]) / "records" / "cell").mkdir(parents=True)
        from bdjax.data.atomic import temporary_of
        temporary_of(Path(arguments[2]) / "records" / "cell" / "a.parquet").write_text("half")
        blocked()

cli._command = command
sys.exit(cli.main())
"""


@contextlib.contextmanager
def begun(code, *arguments):
    """A process that has printed that it begins."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process, limit):
    """Exit code, output and errors of a process that ends within ``limit`` seconds."""
    out, err = process.communicate(timeout=limit)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_call_that_cannot_be_interrupted_is_left(number, code):
    with begun(BLOCKED + ALONE.format(body="blocked()")) as process:
        process.send_signal(number)
        assert ended(process, stopping.ANSWER + 8) == (code, "", "stopped\n")


def test_the_second_signal_ends_it_at_once():
    with begun(BLOCKED + ALONE.format(body="stopping.ANSWER = 1000; blocked()")) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert ended(process, 8) == (130, "", "stopped\n")


def test_what_can_be_interrupted_leaves_as_from_an_error():
    with begun(ALONE.format(body=SLEEPING.strip())) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process, 8) == (130, "left\n", "stopped\n")


@pytest.mark.slow  # seconds of waiting
def test_leaving_that_takes_too_long_is_cut_short():
    body = SLEEPING.strip().replace('print("left", flush=True)', "stuck()")
    stuck = BLOCKED.replace("def blocked", "def stuck").replace("threading.Timer", "#")
    with begun(stuck + "from bdjax.cli import stopping\nstopping.UNWIND = 3.0\n" + ALONE.format(body=body)) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process, 15)[::2] == (130, "stopped\n")


@pytest.mark.slow  # seconds of waiting
def test_the_cells_of_a_stopped_command_are_given_back(tmp_path):
    """One line, the lease is gone, and so is what was half-written."""
    with begun(BLOCKED + LEASING, "run", "--out", str(tmp_path)) as process:
        assert [path.name for path in (tmp_path / "claims").iterdir()] == ["cell.json"]
        process.send_signal(signal.SIGINT)
        assert ended(process, 20) == (130, "", LINE + "\n")
    assert not list((tmp_path / "claims").iterdir()) and not list((tmp_path / "records" / "cell").iterdir())


@pytest.mark.slow  # seconds of waiting
def test_a_signal_that_the_process_ignores_stays_ignored():
    """As of a job that a script started with & in the background."""
    with begun(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BLOCKED + ALONE.format(body="blocked()")
    ) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process, stopping.ANSWER + 8)[0] == 143


def test_calls_from_python_change_no_handler(monkeypatch, capsys):
    """main with arguments, as notebooks and tests call it, and every other thread."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def command(arguments):
        seen.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command", command)
    assert cli.main(["run"]) == 130 and capsys.readouterr().err == LINE + "\n"
    assert cli.main(["plan"]) == 130 and capsys.readouterr().err == "bdjax: stopped\n"

    def elsewhere():
        with stopping.answered("", watched=True) as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.watching])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before, before, before, False]
    with stopping.answered("", watched=True) as stop:
        assert stop.watching and signal.getsignal(signal.SIGINT) == stop.handle
    assert signal.getsignal(signal.SIGINT) == before and not stop.watching


def test_a_callback_of_a_program_is_not_interrupted():
    """An exception there would become an error of the program, and its cell a failed one: the watcher ends the process."""
    stop, names = stopping.Stop(""), {}
    source = "def call(f):\n    f()\n"
    exec(compile(source, os.path.join("x", "jax", "_src", "callback.py"), "exec"), names)
    names["call"](lambda: stop.handle(signal.SIGINT, sys._getframe()))
    assert stop.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, sys._getframe())


@pytest.mark.slow  # a process that compiles and trains
def test_a_long_training_is_stopped_and_goes_on(tmp_path):
    """While one compiled program trains for hours; no record says that it failed."""
    command = [sys.executable, "-m", "bdjax.cli.main", "run", "--width", "4", "--train-images", "100", "--test-images", "50"]
    command += ["--defense", "none", "--poison-ratio", "0.1", "--batch", "25", "--out", str(tmp_path)]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([*command, "--epochs", "1000000"], stderr=log, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while not (began := "epoch " in (tmp_path / "log").read_text()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert began
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 130
    text = (tmp_path / "log").read_text()
    assert text.splitlines()[-1] == LINE and "Traceback" not in text
    assert not list((tmp_path / "claims").iterdir()) and records.read(tmp_path).is_empty()
    assert subprocess.run([*command, "--epochs", "2"], capture_output=True).returncode == 0
