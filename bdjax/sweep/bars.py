"""Two bars on a terminal: the cell that runs and the whole grid, under a line that says what the cell is."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from bdjax.sweep.epochs import Epoch

FRESH = 4  # times a second that the bars are drawn


class Seen(NamedTuple):
    """What there is to see at a moment; replaced as a whole, so that whoever draws it needs no lock."""

    title: str = ""  # of the cell that runs; "" = none does
    begun: float = 0.0  # when it began, by time.monotonic
    epoch: Epoch | None = None  # the last one
    epochs: int = 0  # of its training; 0 = nothing is reported
    now: float = 0.0  # when the times left were so
    kept: float | None = None  # when the last checkpoint was written
    done: int = 0  # cells
    total: int = 0
    left: float | None = None  # seconds of the whole grid; None = nothing to go by

    def checkpoint(self) -> str:
        """The time since the last checkpoint in words; nothing where there is none."""
        return "" if self.kept is None else f"checkpoint {clock(max(time.monotonic() - self.kept, 0.0))} ago"


class Bars:
    """The bars, drawn again and again while the block runs, and gone afterwards.

    Args:
      stream: the terminal.
      see: what is to be seen now.
    """

    def __init__(self, stream: TextIO, see: Callable[[], Seen]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        self._live = Live(console=self._console, get_renderable=lambda: drawn(see()), refresh_per_second=FRESH, transient=True)

    def __enter__(self) -> "Bars":
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def drawn(seen: Seen) -> Any:
    """What is to be seen as something that rich draws."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(no_wrap=True)
    rows.add_column(ratio=1, min_width=6)
    rows.add_column(no_wrap=True, overflow="ellipsis")
    above, passed = [], time.monotonic() - seen.now
    if seen.title:
        epoch = seen.epoch
        said = f"{seen.title}: {epoch.loss()}{epoch.rate()}" if epoch else seen.title
        above = [Text(said, no_wrap=True, overflow="ellipsis")]
        bar = ProgressBar(*_share(epoch), pulse=epoch is None, animation_time=time.monotonic())
        rows.add_row(Text("cell"), bar, Text(_cell(seen, passed)))
    left = "?" if seen.left is None else clock(max(seen.left - passed, 0.0))
    grid = f"{seen.done} of {seen.total} cell{'' if seen.total == 1 else 's'}, ETA {left}"
    rows.add_row(Text("grid"), ProgressBar(max(seen.total, 1), seen.done), Text(grid))
    return Group(*above, rows)


def _share(epoch: Epoch | None) -> tuple[float, float]:
    """All epochs of a cell, and those that it has behind it."""
    return (1, 0) if epoch is None else (epoch.of * epoch.parts, epoch.of * (epoch.part - 1) + epoch.number)


def _cell(seen: Seen, passed: float) -> str:
    """How far the cell is, beside its bar."""
    epoch = seen.epoch
    if epoch is None:
        return f"{f'epoch 0/{seen.epochs}, ' if seen.epochs else ''}{clock(time.monotonic() - seen.begun)} so far"
    left = "?" if epoch.left is None else clock(max(epoch.left - passed, 0.0))
    return ", ".join(filter(None, (f"{epoch.place()}, ETA {left}", seen.checkpoint())))


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
