"""Rows that are written as they are measured, and the time that is left for more of them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bdjax.population import Execution
from benchmarks.measure import write

UNKNOWN = 1.5  # a program that was not compiled yet is expected to take so many times the longest compilation so far


class Suite:
    """What was measured so far, and the budget.

    Args:
      out: of the two files, without their suffix.
      command: that is recorded.
      notes: under the table.
      minutes: for everything; no measurement starts that is expected to end later.
    """

    def __init__(self, out: Path, command: str, notes: str, minutes: float) -> None:
        self.out, self.command, self.notes = out, command, notes
        self.rows: list[dict[str, Any]] = []
        self.end = self.part_end = time.perf_counter() + 60 * minutes
        self.ceiling: float | None = None  # FLOP/s of a large matrix product
        self.macs = 0  # of one image's forward pass
        self.rates: dict[Execution, float] = {}  # training images/s by form, the best over the numbers of members
        self.compiles: dict[Execution, tuple[float, int]] = {}  # seconds of a compilation by form, and for how many members

    def note(self, **row: Any) -> dict[str, Any]:
        """Write a row, and return it."""
        self.rows.append(row)
        write(self.out, self.command, self.rows, self.notes)
        print({key: value for key, value in row.items() if value is not None}, flush=True)
        return row

    def left(self) -> float:
        """Return the seconds until the part has to end."""
        return min(self.part_end, self.end) - time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str, minutes: float) -> Iterator[None]:
        """Run a part of the suite, which has so many minutes from now; what stops it is a row and not the end of the suite."""
        self.part_end = time.perf_counter() + 60 * minutes
        try:
            yield
        except Exception as error:  # whatever it is, the other parts are still worth their time
            self.note(part=name, what="the part stopped", failed=short(error))

    def attempt(self, about: dict[str, Any], needed: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Measure and write one row.

        Args:
          about: the columns that say what is measured.
          needed: seconds that it is expected to take.
          measure: returns the other columns.

        Returns:
          The row; None where there was no time for it or it failed, which is a row too.
        """
        left = self.left()
        if left <= 0 or needed > left:
            self.note(**about, skipped=f"it needs about {needed:.0f} s, and {max(left, 0):.0f} s are left")
            return None
        try:
            found = measure()
        except Exception as error:  # out of memory, something a compiler refuses: a row, not the end
            self.note(**about, failed=short(error))
            return None
        return self.note(**about, **found)

    def mfu(self, rate: float) -> float | None:
        """Return the utilisation at so many training images per second; None where the ceiling could not be measured."""
        return 6 * self.macs * rate / self.ceiling if self.ceiling else None

    def learn(self, form: Execution, count: int, rate: float, compilation: float) -> None:
        """Keep what a measurement of training says about later ones."""
        self.rates[form] = max(self.rates.get(form, 0.0), rate)
        self.compiled(form, count, compilation)

    def compiled(self, form: Execution, count: int, took: float) -> None:
        """Keep how long a program for so many members compiled, if no program of this form took longer."""
        if took >= self.compiles.get(form, (0.0, 1))[0]:
            self.compiles[form] = (took, count)

    def best(self) -> Execution | None:
        """Return the form that trained the most images per second, or None before the first measurement."""
        return max(self.rates, key=lambda form: self.rates[form], default=None)

    def work_seconds(self, images: float, form: Execution | None = None) -> float:
        """Return how long so many images of training are expected to take; 0 where no rate was measured."""
        rate = self.rates.get(form, 0.0) if form else 0.0
        rate = rate or max(self.rates.values(), default=0.0)
        return images / rate if rate else 0.0

    def compile_seconds(self, form: Execution, count: int) -> float:
        """Return how long a new program of a form is expected to compile; 0 before the first measurement.

        A program that repeats its convolutions for every member is expected to take longer with more of them: in proportion to
        what the form took before, or, where it was not measured, half the longest compilation for each member.
        """
        repeated = form.strategy == "unrolled" or (form.strategy != "sequential" and form.lowering == "unrolled")
        if form in self.compiles:
            took, members = self.compiles[form]
            return took * (count / members if repeated else 1.0)
        longest = max((took for took, _ in self.compiles.values()), default=0.0)
        return longest * max(UNKNOWN, count / 2 if repeated else 0.0)


def short(error: BaseException) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
