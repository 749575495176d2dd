"""Tables and paragraphs that fit the terminal; into a file or a pipe a row is one line, whatever its length."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

UNBOUNDED = 100_000  # characters of a line that is not cut


def printed(*parts: RenderableType) -> None:
    """Print tables and texts below each other, without spaces at the ends of lines."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        force_terminal=terminal,
        width=None if terminal else UNBOUNDED,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def table(rows: Sequence[Mapping[str, Any]], *, last: str = "") -> Table:
    """A table of entries with the same fields, the first of which never wraps; what a list holds is joined by commas.

    Args:
      rows: at least one.
      last: the column that stands last.
    """
    order = sorted(rows[0], key=lambda name: name == last)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in order:
        made.add_column(Text(name), no_wrap=name == order[0], overflow="fold")
    for row in rows:
        made.add_row(*(Text(text(row[name], name)) for name in order))
    return made


def text(value: Any, name: str = "") -> str:
    """A value as a table shows it: an empty list of ``needs`` is nothing at all, any other a dash."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or ("nothing" if name == "needs" else "-")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def facts(entry: Mapping[str, str]) -> Table:
    """Names and texts side by side, the texts wrapped; those that are empty are left out."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in entry.items():
        if value:
            made.add_row(Text(name, "bold"), Text(value))
    return made


def titled(title: str, below: RenderableType) -> Sequence[RenderableType]:
    """A heading with what stands below it, indented."""
    return [Text(), Text(title, "bold"), Padding(below, (0, 0, 0, 2), expand=False)]
