"""The report of a folder: one self-contained HTML page, tables, figures, and a page per training configuration."""

import concurrent.futures
import functools
import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from bdjax import __version__
from bdjax.errors import UserError
from bdjax.reporting import overall, sensitivity, tables
from bdjax.reporting.details import Details, details
from bdjax.reporting.drawing import Drawing
from bdjax.reporting.latex import latex
from bdjax.reporting.page import CELLS, Drawn, Pooled, index, scenario
from bdjax.results.mitigation import LIMITS, Limits, checked, judged
from bdjax.results.pool import leaderboard, table, without_replaced
from bdjax.results.scenarios import Scenario, scenarios
from bdjax.results.views import views
from bdjax.store import location
from bdjax.store.files import replacing
from bdjax.store.location import Location

if TYPE_CHECKING:
    import polars as pl

INSIDE = 4  # training configurations whose figures the index itself holds; where there are more, each has a page of its own
Track = Callable[[Iterable[None], int], Iterable[None]]


def build(
    out: "str | Location",
    records: "pl.DataFrame | None" = None,
    *,
    data_dir: str | None = None,
    pages: bool = True,
    processes: int = 1,
    track: Track = lambda steps, total: steps,
    limits: Limits = LIMITS,
) -> Location:
    """Write the report into the folder of a sweep.

    ``index.html``, ``table.md``, ``table.csv``, ``table.tex``, ``leaderboard.tex`` and ``figures/*.png``; where there are more
    than :data:`INSIDE` training configurations also ``cells/*.html``, a page each: those are drawn whose records changed.

    Args:
      out: folder of the records.
      records: rows to report; None = all in ``out``.
      data_dir: folder of the data archives, for the pictures of triggers; the pages say so where they cannot be drawn.
      pages: draw the pages of single training configurations too; without, the index does not lead to any.
      processes: that draw these pages side by side; more than one are started anew, so the caller's script must bear an import.
      track: wraps the iterator over these pages, with their number; for a bar.
      limits: what counts as mitigated.

    Returns:
      The path of ``index.html``: one file, no other is needed to read it, nothing is fetched.

    Raises:
      UserError: there are no records, the folder cannot be written, or a limit is no fraction.
    """
    checked(limits)
    folder = location.locate(out)
    if records is None:
        from bdjax.store.records import read

        records = read(folder)
    records = judged(records, limits)
    shown, counted = scenarios(records), without_replaced(records)
    drawn = Drawn(
        list(overall.figures_of(counted, limits)),
        [Drawing(*one) for one in sensitivity.figures_of(counted)],
        details(shown, folder, data_dir) if len(shown) <= INSIDE else None,
    )
    pooled = Pooled(table(records), leaderboard(records), views(records))
    every = tables.full_of(pooled.table, limits)
    text = index(records, pooled, every, shown, drawn, linked=pages, limits=limits)
    try:
        with location.written(folder) as here:
            (here / "figures").mkdir(parents=True, exist_ok=True)
            for drawing in (*drawn.overall, *drawn.sensitivity, *(drawn.details.drawings() if drawn.details else ())):
                if drawing.figure is not None:
                    drawing.figure.savefig(here / "figures" / f"{drawing.slug}.png", dpi=150)
            _write_tables(here, pooled, every, limits)
            (here / "index.html").write_text(text, encoding="utf-8")
        if pages:
            _write_pages(folder, shown if drawn.details is None else [], data_dir, processes, track, limits)
    except OSError as error:
        raise UserError(f"cannot write the report in {folder}: {error.strerror or error}") from error
    return folder / "index.html"


def _write_tables(folder: Path, pooled: Pooled, every: tables.Printed, limits: Limits) -> None:
    (folder / "table.md").write_text(tables.markdown_of(every), encoding="utf-8")
    (folder / "table.csv").write_text(pooled.table.write_csv(), encoding="utf-8")
    (folder / "table.tex").write_text(latex(every, "Results per scenario and defense", "tab:scenarios"), encoding="utf-8")
    if not pooled.board.is_empty():
        board = latex(tables.board_of(pooled.board, limits), "Defenses pooled over attacks and poison ratios", "tab:leaderboard")
        (folder / "leaderboard.tex").write_text(board, encoding="utf-8")


def _write_pages(
    folder: Location, shown: list[Scenario], data_dir: str | None, processes: int, track: Track, limits: Limits
) -> None:
    """Draw the pages of the scenarios whose records changed; delete the pages of scenarios that are gone."""
    there = {path.name: path for path in location.files(folder / CELLS, "*.html")}
    for name in there.keys() - {f"{one.name}.html" for one in shown}:
        there[name].unlink(missing_ok=True)
    stale = [one for one in shown if _drawn_from(there.get(f"{one.name}.html")) != _digest(one, limits)]
    if not stale:
        return
    with location.written(folder / CELLS) as here:
        _draw(stale, here, folder, data_dir, processes, track, limits)


def _draw(
    stale: list[Scenario], here: Path, folder: Location, data_dir: str | None, processes: int, track: Track, limits: Limits
) -> None:
    drawn = functools.partial(draw, here=here, folder=folder, data_dir=data_dir, limits=limits)
    if processes == 1 or len(stale) == 1:
        for _ in track(map(drawn, stale), len(stale)):
            pass
        return
    # Not forked: the parent may hold a device and threads.
    start = multiprocessing.get_context("spawn")
    alone = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too, which ends them
    count = min(processes, len(stale))
    with concurrent.futures.ProcessPoolExecutor(count, start, initializer=signal.signal, initargs=alone) as pool:
        try:
            for _ in track(pool.map(drawn, stale), len(stale)):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun
            raise


def draw(shown: Scenario, here: Path, folder: Location, data_dir: str | None, limits: Limits = LIMITS) -> None:
    """Draw the page of one training configuration into a folder of this machine; ``folder``: of its records."""
    drawn = details([shown], folder, data_dir)
    text = scenario(shown, drawn, _digest(shown, limits) if _complete(drawn) else "", limits)
    with replacing(here / f"{shown.name}.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _complete(drawn: Details) -> bool:
    """Whether everything could be drawn; what is missing may be there the next time."""
    return all(drawing.figure is not None for drawing in drawn.drawings())


def _digest(shown: Scenario, limits: Limits) -> str:
    """What identifies the rows of a scenario, what they are judged by, and the code that draws them."""
    found = hashlib.sha256(f"{__version__} {_code()} {shown.title} {limits}".encode())
    for row in sorted(shown.rows.select("cell", "member", "created").rows()):
        found.update(repr(row).encode())
    return found.hexdigest()


@functools.cache
def _code() -> str:
    """The digest of the code and the templates that make a page."""
    every = [path for room in ("bdjax.reporting", "bdjax.results") for path in files(room).iterdir() if path.is_file()]
    sources = sorted(every, key=lambda path: path.name)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _drawn_from(path: Location | None) -> str | None:
    """The digest in the head of a page; None where there is no page."""
    if path is None:
        return None
    _, found, rest = location.read_bytes(path)[:1000].partition(b'<meta name="bdjax-records" content="')
    return rest.partition(b'"')[0].decode() if found else None
