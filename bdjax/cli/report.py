"""Two commands about a folder of results: its report, and the papers behind it."""

import os
from collections.abc import Iterable

from bdjax.errors import UserError
from bdjax.results.mitigation import Limits, checked


def report(
    out: str,
    /,
    limits: Limits,
    *,
    data_dir: str | None = None,
    pages: bool = True,
    processes: int | None = None,
) -> int:
    """Write the tables (Markdown, CSV, LaTeX), figures and the HTML page of a folder of records.

    Where it holds more than four training configurations, each of them has a page of its own beside the index; those whose
    records did not change since are kept.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run.
      limits: what counts as mitigated.
      data_dir: folder of the data archives, for the pictures of triggers; default: the environment's BDJAX_DATA_DIR.
      pages: draw the pages of single training configurations too.
      processes: that draw these pages side by side; default: one per CPU core, at most 8.
    """
    from bdjax.report.html import build
    from bdjax.store import records as store

    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least 1")
    checked(limits)
    records = store.read(out)
    if records.is_empty():
        raise UserError(f"{out} holds no records; write some with: bdjax run --out {out}")
    many = processes or min(os.cpu_count() or 1, 8)
    path = build(out, records, data_dir=data_dir, pages=pages, processes=many, track=_bar, limits=limits)
    print(f"report in {path}")
    return 0


def _bar(steps: Iterable[None], total: int) -> Iterable[None]:
    from rich.console import Console
    from rich.progress import track

    return track(steps, "pages of training configurations", total, console=Console(stderr=True))


def cite(out: str, /) -> int:
    """Print BibTeX of the papers behind a folder of results: its attacks, defenses, models and data sets.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run.
    """
    from bdjax.results.cite import cite_folder

    print(cite_folder(out))
    return 0
