"""Wall time apart from the time JAX spends on tracing, lowering and compiling, or on its cache of compiled programs."""

import time
from typing import Any

import jax


class Stopwatch:
    """Runs while its block does; may be read within and after."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._begun = 0.0
        self._ended: float | None = None

    def __enter__(self) -> "Stopwatch":
        self._begun = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended = time.perf_counter()
        jax.monitoring.unregister_event_duration_listener(self._listen)

    @property
    def compile_seconds(self) -> float:
        """Seconds of tracing and compiling so far."""
        return min(_union(self._spans), self._wall)

    @property
    def seconds(self) -> float:
        """All other seconds so far."""
        return self._wall - self.compile_seconds

    @property
    def _wall(self) -> float:
        return (time.perf_counter() if self._ended is None else self._ended) - self._begun

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            self._spans.append((end - duration_secs, end))


def _union(spans: list[tuple[float, float]]) -> float:
    """Return the length covered by intervals that may nest: tracing one function traces the functions it calls."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total
