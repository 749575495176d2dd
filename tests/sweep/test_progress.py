"""What a person sees while a sweep runs, and how time is told apart."""

import collections
import io
import threading
import time

import numpy as np
import pytest

from bdjax.population import stopwatch
from bdjax.population.snapshots import Snapshot
from bdjax.store import provenance
from bdjax.sweep import bars
from bdjax.sweep.bars import clock
from bdjax.sweep.epochs import Epochs
from bdjax.sweep.progress import Progress


@pytest.fixture
def tick(monkeypatch):
    """A clock that moves when told."""
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def epoch(progress, number, losses=(1.0, 3.0), alive=(True, True)):
    progress.epoch(np.full(2, number), np.asarray(losses), np.asarray(alive))


def test_plain_lines_tell_loss_pace_and_time_left(tick):
    out = io.StringIO()
    with Progress(["train", "ft"], out, interval=5.0) as progress:
        progress.start("train", "digits", epochs=4, images=500, members=2, at_once=2)
        tick(60)  # compilation
        epoch(progress, 0)
        tick(2)
        epoch(progress, 1)  # within the interval: no line
        tick(3)
        progress.kept(2, 0.5)
        tick(5)
        epoch(progress, 2, alive=(True, False))
        tick(2)
        progress.finish("digits: trained")
        progress.start("ft", "digits / ft")
        tick(9)
        progress.finish("digits / ft: repaired")
    lines = out.getvalue().splitlines()
    assert lines == [
        "digits: epoch 1/4, loss 2.000 [1.000, 3.000], ETA ?",
        "digits: epoch 3/4, loss 1.000 [1.000, 1.000], 200 images/s, checkpoint 0:05 ago, ETA for this cell 0:05",
        "digits: trained, ETA 1:12",  # nothing is known of ft yet: as long as the mean so far
        "digits / ft",
        "digits / ft: repaired, done",
    ]


def test_a_kind_that_was_seen_is_expected_to_take_as_long_again(tick):
    out = io.StringIO()
    progress = Progress(["ft", "fp", "ft", "fp"], out)
    for kind, seconds in (("ft", 10), ("fp", 30)):
        progress.start(kind, kind)
        tick(seconds)
        progress.finish(kind)
    assert out.getvalue().splitlines()[-1] == "fp, ETA 0:40"


def test_a_population_without_a_finite_member_is_said(tick):
    out = io.StringIO()
    progress = Progress(["train"], out, interval=0.0)
    progress.start("train", "digits", epochs=2, members=2, at_once=2)
    epoch(progress, 0, alive=(False, False))
    assert "no member is finite" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_bars_and_brackets_stay_as_they_are():
    out = Terminal()
    with Progress(["train"], out) as progress:
        progress.start("train", "digits [bold]", epochs=2, images=10, members=2, at_once=2)
        epoch(progress, 0)
        progress.finish("digits [bold]: trained")
    assert "digits [bold]: trained, done" in out.getvalue() and "0 of 1 cell" in out.getvalue()


def lines(progress, width=100):
    """What the bars of a terminal say, without the bars themselves."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(bars.drawn(progress.seen))
    return [
        " ".join(line.replace("━", "").replace("╸", "").replace("╺", "").split()) for line in console.file.getvalue().splitlines()
    ]


def test_one_bar_is_the_cells_and_one_the_grids(tick):
    progress = Progress(["train", "ft", "train"], Terminal())
    assert lines(progress) == ["grid 0 of 3 cells, ETA ?"]
    progress.start("train", "digits / cnn", epochs=10, images=500, members=2, at_once=2)
    tick(30)
    assert lines(progress) == ["digits / cnn", "cell epoch 0/10, 0:30 so far", "grid 0 of 3 cells, ETA ?"]
    epoch(progress, 0)
    tick(4)
    epoch(progress, 1)
    progress.kept(2, 0.1)
    tick(2)  # between two epochs the time left falls and the checkpoint grows older
    assert lines(progress)[:2] == [
        "digits / cnn: loss 2.000 [1.000, 3.000], 250 images/s",
        "cell epoch 2/10, ETA 0:30, checkpoint 0:02 ago",
    ]
    tick(4)
    progress.finish("digits / cnn: trained")
    progress.start("ft", "digits / cnn / ft")
    tick(5)
    assert lines(progress) == ["digits / cnn / ft", "cell 0:05 so far", "grid 1 of 3 cells, ETA 1:15"]
    assert len(lines(progress, width=30)) == 3  # nothing wraps


def test_a_training_that_goes_on_is_measured_by_its_own_epochs_and_ends_when_it_ends(tick):
    out = io.StringIO()
    progress = Progress(["train", "train"], out, interval=0.0)
    progress.start("train", "digits", epochs=600, images=50, members=2, at_once=2)
    progress.resume(Snapshot(2, 0, 0, 350, 60.0, (), ()))
    tick(100)
    epoch(progress, 350)
    tick(2)
    epoch(progress, 351)
    told = out.getvalue().splitlines()
    assert told[0] == "digits: goes on after epoch 350/600"
    assert told[-1].endswith("epoch 352/600, loss 2.000 [1.000, 3.000], 50 images/s, ETA for this cell 8:16")
    tick(148)
    progress.finish("digits: trained")  # 250 s for 250 of 600 epochs: the next cell takes 600
    assert out.getvalue().splitlines()[-1] == "digits: trained, ETA 10:00"


def heard(epochs, number, *losses):
    return epochs.hear(np.full(len(losses), number), np.asarray(losses), np.ones(len(losses), bool))


def test_parts_of_the_members_count_one_after_the_other_and_what_fills_up_the_last_does_not(tick):
    training = Epochs(epochs=2, images=10, members=5, at_once=2)
    found = []
    for number in (0, 1, 0, 1, 0):
        tick(2)
        found.append(heard(training, number, 1.0, 2.0))
    assert [(one.part, one.parts, one.number, one.left) for one in found] == [
        (1, 3, 1, None), (1, 3, 2, 8.0), (2, 3, 1, 6.0), (2, 3, 2, 4.0), (3, 3, 1, 2.0),
    ]  # fmt: skip
    assert (found[3].images, found[3].members, found[4].images, found[4].members) == (10.0, 2, 5.0, 1)
    assert found[4].losses == (1.0, 1.0, 1.0)


def test_a_part_that_goes_on_is_the_one_it_was(tick):
    training = Epochs(epochs=4, members=6, at_once=3)
    training.resume(2, 2, 3)  # memory had allowed two at once, of which the first two are done
    assert training.share == pytest.approx((2 * 4 + 2 * 3) / 24)
    one = heard(training, 3, 1.0, 1.0)
    tick(5)
    two = heard(training, 0, 1.0, 1.0)
    assert [(each.part, each.parts, each.number) for each in (one, two)] == [(2, 3, 4), (3, 3, 1)] and two.left == 15.0


def test_a_part_that_begins_anew_with_fewer_members_counts_once(tick):
    training = Epochs(epochs=4, members=8, at_once=8)
    heard(training, 0, *[1.0] * 8)
    tick(50)
    one = heard(training, 0, *[1.0] * 4)
    assert (one.part, one.parts, one.left) == (1, 2, None)  # the time of the attempt that failed is no measure


def test_an_epoch_is_heard_of_once_all_devices_have_reported_it(tick):
    training = Epochs(epochs=3, images=10, members=4, at_once=4, devices=2)
    assert heard(training, 0, 1.0, 2.0) is None and heard(training, 1, 1.0, 2.0) is None  # one may be ahead
    tick(3)
    first = heard(training, 0, 3.0, 6.0)
    assert (first.number, first.losses, first.members) == (1, (1.0, 2.5, 6.0), 4)
    tick(2)
    second = heard(training, 1, 3.0, 6.0)
    assert (second.number, second.images, second.left) == (2, 20.0, 2.0)
    alone = Epochs(epochs=3, images=10, members=4, at_once=4, devices=2, local=1)  # the other device is another process's
    assert heard(alone, 0, 1.0, 2.0).part == 1 and heard(alone, 1, 1.0, 2.0).parts == 1


def test_the_rate_is_that_of_the_last_epochs(tick):
    training = Epochs(epochs=1000, images=100)
    for number in range(300):
        tick(2.0 if number < 100 else 0.5)
        last = heard(training, number, 1.0)
    assert last.images == pytest.approx(200) and last.left == pytest.approx(350)


def test_what_others_see_of_a_cell_is_short(tick):
    progress = Progress(["train"], io.StringIO())
    assert progress.note() == ""
    progress.start("train", "digits", epochs=600, members=2, at_once=2)
    epoch(progress, 119)
    assert progress.note() == "epoch 120/600, loss 2.000 [1.000, 3.000]"
    progress.kept(120, 0.1)
    tick(20)
    assert progress.note() == "epoch 120/600, loss 2.000 [1.000, 3.000], checkpoint 0:20 ago"
    progress.finish("digits: trained")
    assert progress.note() == ""


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.events, self.closed = [], False

    def hear(self, event, facts):
        self.events.append((event, facts))

    def close(self):
        self.closed = True


def test_a_log_hears_of_one_epoch_a_second_and_always_of_the_last(tick):
    log = Heard()
    with pytest.raises(ValueError), Progress(["train", "train"], io.StringIO(), listeners=[log], about={"pid": 7}) as progress:
        progress.start("train", "digits", cell="c0", epochs=100, members=2, at_once=2)
        for number in range(100):
            tick(0.1)
            epoch(progress, number)
        progress.kept(100, 0.25)
        progress.say("a warning")
        progress.finish("digits: trained")
        raise ValueError("what went wrong")
    events = [event for event, _ in log.events]
    assert events[:2] == ["run", "cell"] and events[-5:] == ["checkpoint", "line", "epoch", "cell done", "end"]
    assert log.events[0][1] == {"pid": 7, "cells": 2} and log.closed
    numbers = [facts["epoch"] for event, facts in log.events if event == "epoch"]
    assert len(numbers) <= 11 and numbers[-1] == 100
    said = dict(log.events)
    assert said["epoch"]["cell"] == "c0" and (said["epoch"]["loss_min"], said["epoch"]["loss_max"]) == (1.0, 3.0)
    assert said["checkpoint"] == {"cell": "c0", "title": "digits", "epoch": 100, "seconds": 0.25}
    assert said["line"] == {"text": "a warning"}
    assert said["end"] == {"done": 1, "error": "ValueError: what went wrong"}


def test_threads_may_speak_at_once():
    log = Heard()
    with Progress(["train"], io.StringIO(), interval=0.0, listeners=[log]) as progress:
        progress.start("train", "digits", epochs=400, members=2, at_once=2)
        threads = [threading.Thread(target=lambda n=n: [progress.kept(n, 0.1) for _ in range(100)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for number in range(100):
            epoch(progress, number)
        for thread in threads:
            thread.join()
        progress.finish("digits: trained")
    events = collections.Counter(event for event, _ in log.events)
    assert (events["checkpoint"], events["epoch"], events["end"]) == (400, 100, 1)


def test_clock():
    assert [clock(s) for s in (0.4, 61, 3600, 3725)] == ["0:00", "1:01", "1:00:00", "1:02:05"]


def test_nested_times_of_compilation_count_once():
    assert stopwatch._union([(0.0, 4.0), (1.0, 2.0), (3.0, 5.0), (7.0, 8.0)]) == 6.0
    assert stopwatch._union([]) == 0.0


def test_wall_time_is_told_from_compile_time():
    import jax
    import jax.numpy as jnp

    @jax.jit
    def f(x):
        return jnp.sin(x) + jnp.float32(time.monotonic_ns() % 1000)  # a constant no cache has seen

    first = provenance.timed(lambda: f(jnp.ones(3)))
    second = provenance.timed(lambda: f(jnp.ones(3)))
    assert first.compile_seconds > second.compile_seconds >= 0 and first.seconds >= 0
    assert second.result.shape == (3,)


def test_provenance_names_versions_and_device():
    assert {"python", "jax", "numpy"} <= provenance.versions().keys()
    assert "CPU" in provenance.device()
