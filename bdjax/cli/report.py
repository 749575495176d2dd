"""Commands that show a folder of results: its report, the papers behind it, what defenses prune and whom they accuse."""

import json as encoding
import os
import sys
from collections.abc import Iterable
from typing import Annotated

from bdjax.cli.flags import DataDir, ImportFolder, OwnData, Results, flag
from bdjax.errors import UserError, command
from bdjax.results.mitigation import Limits, checked
from bdjax.store import location
from bdjax.store import records as store


def report(
    out: Results,
    /,
    limits: Limits,
    *,
    data_dir: DataDir = None,
    pages: bool = True,
    processes: Annotated[int | None, flag("INT", "one per CPU core, at most 8")] = None,
) -> int:
    """Write the tables (Markdown, CSV, LaTeX), figures and the HTML page of a folder of records.

    Where it holds more than four training configurations, each of them has a page of its own beside the index; those whose
    records did not change since are kept.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run.
      limits: what counts as mitigated.
      data_dir: folder of the data archives, for the pictures of triggers.
      pages: draw the pages of single training configurations too.
      processes: that draw these pages side by side.
    """
    from bdjax.reporting.html import build

    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least 1")
    checked(limits)
    records = store.read(out)
    if records.is_empty():
        raise UserError(f"{out} holds no records; write some with: {command('run', '--out', out)}")
    many = processes or min(os.cpu_count() or 1, 8)
    path = build(out, records, data_dir=data_dir, pages=pages, processes=many, track=_bar, limits=limits)
    print(f"report in {path}")
    return 0


def _bar(steps: Iterable[None], total: int) -> Iterable[None]:
    from rich.console import Console
    from rich.progress import track

    return track(steps, "pages of training configurations", total, console=Console(stderr=True))


def cite(out: Results, /) -> int:
    """Print BibTeX of the papers behind a folder of results: its attacks, defenses, models and data sets.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run.
    """
    from bdjax.results.cite import cite_folder

    print(cite_folder(out))
    return 0


def verdicts(out: Results, /, *, csv: bool = False, json: bool = False) -> int:
    """Say which models a detecting defense called backdoored: right or wrong, anomaly indices, false alarms on clean models.

    Per training configuration and poison ratio, from the records alone. Neural Cleanse (nc) records a verdict; MM-BD here is the
    paper's mitigation, which records no detection statistic.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run.
      csv: as comma-separated values, fractions in full precision.
      json: as JSON; a number that is infinite or undefined is null.
    """
    from bdjax.reporting.tables import markdown_of
    from bdjax.reporting.verdicts import printed
    from bdjax.results.verdicts import table
    from bdjax.store.hashing import plain

    if csv and json:
        raise UserError("--csv and --json are two forms: give one")
    records = store.read(out)
    if records.is_empty():
        raise UserError(f"{out} holds no records; write some with: {command('run', '--out', out)}")
    rows = table(records)
    if rows.is_empty():
        raise UserError(
            f"{out} holds no verdict: no record says which classes are called targets; bdjax run --defense nc makes some"
        )
    if csv:
        print(rows.write_csv(), end="")
    elif json:
        print(encoding.dumps(plain(rows.to_dicts()), indent=2))
    else:
        without = sorted(set(records["defense"]) - {"none", *rows["defense"]})
        print(markdown_of(printed(rows, without)))
    return 0


def compare_masks(
    out: Results, first: Annotated[str, flag("FIRST")], second: Annotated[str, flag("SECOND")], /, *, below: float = 0.0
) -> int:
    """Compare what two defenses prune: the overlap of their masks per layer, as a table and as a picture.

    Args:
      out: folder of the results.
      first: a defense with masks.
      second: another.
      below: a channel counts as pruned where its keep factor is at most this; above 0 for soft masks such as awn's.
    """
    from bdjax.reporting.compare import markdown, picture
    from bdjax.results.masks import overlaps

    if not 0 <= below < 1:
        raise UserError(f"--below must lie in [0, 1); given {below}")
    records = store.read(out)
    if records.is_empty():
        raise UserError(f"{out} holds no records")
    found = overlaps(records, first, second, below)
    print(markdown(found, first, second))
    figures = location.locate(out) / "figures"
    name = f"masks-{first}-{second}.png"
    with location.written(figures) as folder:
        picture(found, first, second).savefig(folder / name, dpi=150)
    print(f"picture in {figures / name}", file=sys.stderr)
    return 0


def pruning_curve(
    out: Results,
    defense: Annotated[str, flag("DEFENSE")],
    /,
    *,
    data_dir: DataDir = None,
    dataset: OwnData = None,
    imported: ImportFolder = None,
) -> int:
    """Measure ACC and ASR at every level of a defense's pruning curve, for analysis: a table, a CSV file and a picture.

    Args:
      out: folder of the results.
      defense: one that prunes more and more: fp, anp, clp, rnp, bnp, or your own.
      data_dir: folder of the data archives.
      dataset: path of the data set, where it is your own.
      imported: import folder the networks came from.
    """
    from bdjax.reporting.curves import markdown, picture
    from bdjax.results.curves import frame, grouped, measure

    found = measure(out, defense, data_dir=data_dir, dataset=dataset, folder=imported)
    groups = grouped(found)
    print(markdown(groups))
    figures = location.locate(out) / "figures"
    name = f"pruning-curve-{defense.rpartition(':')[2]}"
    with location.written(figures) as folder:
        frame(found).write_csv(folder / f"{name}.csv")
        picture(groups).savefig(folder / f"{name}.png", dpi=150)
    print(f"picture in {figures / name}.png, numbers in {figures / name}.csv", file=sys.stderr)
    return 0
