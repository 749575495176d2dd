"""What a person sees while a sweep runs, and how time is told apart."""

import io
import time

import numpy as np
import pytest

from bdjax.store import provenance
from bdjax.sweep import progress as shown
from bdjax.sweep.progress import Progress, clock


@pytest.fixture
def tick(monkeypatch):
    """A clock that moves when told."""
    now = [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def epoch(progress, number, losses=(1.0, 3.0), alive=(True, True)):
    progress.epoch(np.full(2, number), np.asarray(losses), np.asarray(alive))


def test_plain_lines_tell_loss_pace_and_time_left(tick):
    out = io.StringIO()
    with Progress(["train", "ft"], out, interval=5.0) as progress:
        progress.start("train", "digits", epochs=4, images=1000, chunks=1)
        tick(60)  # compilation
        epoch(progress, 0)
        tick(2)
        epoch(progress, 1)  # within the interval: no line
        tick(8)
        epoch(progress, 2, alive=(True, False))
        tick(2)
        progress.finish("digits: trained")
        progress.start("ft", "digits / ft")
        tick(9)
        progress.finish("digits / ft: repaired")
    lines = out.getvalue().splitlines()
    assert lines == [
        "digits: epoch 1/4, loss 2.000 [1.000, 3.000], ETA ?",
        "digits: epoch 3/4, loss 1.000 [1.000, 1.000], 200 images/s, ETA for this cell 0:05",
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
    progress.start("train", "digits", epochs=2)
    epoch(progress, 0, alive=(False, False))
    assert "no member is finite" in out.getvalue()


def test_a_terminal_gets_a_bar_and_brackets_stay_as_they_are(tick):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress(["train"], out) as progress:
        progress.start("train", "digits [bold]", epochs=2, images=10)
        epoch(progress, 0)
        progress.finish("digits [bold]: trained")
    assert "digits [bold]: trained, done" in out.getvalue()


def test_clock():
    assert [clock(s) for s in (0.4, 61, 3600, 3725)] == ["0:00", "1:01", "1:00:00", "1:02:05"]


def test_nested_times_of_compilation_count_once():
    assert provenance._union([(0.0, 4.0), (1.0, 2.0), (3.0, 5.0), (7.0, 8.0)]) == 6.0
    assert provenance._union([]) == 0.0


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
