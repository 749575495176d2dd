"""What the page's script needs to filter the tables: the facets of every row, and the runs behind the leaderboard's rows."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.report.tables import HEADLINE, METRICS_SHOWN, setting
from bdjax.results.mitigation import judged
from bdjax.results.pool import BOARD, STATUSES, described, with_tasks, without_replaced
from bdjax.results.soundness import COUNTED, counted

if TYPE_CHECKING:
    import polars as pl

FACETS = ("attack", "labels", "dataset", "model", "ratio", "spc", "defense")
LABELS = {
    "labels": "label rule",
    "dataset": "data set",
    "model": "network",
    "ratio": "poison ratio, percent",
    "spc": "clean samples per class",
}
ROUNDED = 10_000  # the runs go into the page as whole hundredths of a percent


class Facet(NamedTuple):
    """One way to choose rows."""

    key: str
    values: tuple[Any, ...]  # ascending; what every choice shows, such as models before a defense, is none of them

    def place(self, about: dict[str, Any]) -> int:
        """The place of a row's value; -1 where the row serves every choice."""
        value = about.get(self.key)
        return self.values.index(value) if value in self.values else -1


def facets(records: "pl.DataFrame") -> list[Facet]:
    """The facets of a report; those with one value too, which the page leaves out."""
    rows = described(records)
    return [Facet(key, tuple(sorted(set(rows[key].drop_nulls()) - {"none"}))) for key in FACETS]


def choices(found: list[Facet]) -> str:
    """The facets as JSON: key, label and the text of each value."""
    told = [
        {"key": facet.key, "label": LABELS.get(facet.key, facet.key), "values": [setting(facet.key, v) for v in facet.values]}
        for facet in found
    ]
    return safe(told)


def runs(records: "pl.DataFrame", board: "pl.DataFrame", found: list[Facet]) -> str:
    """The runs behind each row of the leaderboard as JSON.

    A list per row, in it one of each task: the index of its attack, that of its ratio, how many runs ended how
    (:data:`bdjax.results.pool.STATUSES`), for each of ACC, ASR, RA, ARR, DER and mitigated the values of the runs where it is
    defined, in hundredths of a percent, and how many runs are left out of mitigated, how many each count of
    :data:`bdjax.results.soundness.COUNTED` finds, and the sum of ACC before over the hardly trained, in hundredths too.
    """
    import polars as pl

    rows = described(with_tasks(judged(without_replaced(records)))).filter(pl.col("defense") != "none")
    ok = pl.col("status") == "ok"
    whole = [
        (pl.col(name).filter(ok & pl.col(name).is_not_nan()) * ROUNDED).round().cast(pl.Int32).drop_nulls().sort()
        for name in METRICS_SHOWN
    ]
    whole.append((pl.col(HEADLINE) * ROUNDED).cast(pl.Int32).drop_nulls().sort())
    counts = [(pl.col("status") == status).sum().alias(status) for status in STATUSES]
    tasks = rows.group_by(*BOARD, "attack", "ratio", "task", maintain_order=True).agg(
        *counts, *whole, pl.col("left_out").sum(), *counted()
    )
    by_row: dict[tuple[Any, ...], list[Any]] = {}
    attack, ratio = (next(facet for facet in found if facet.key == key) for key in ("attack", "ratio"))
    for row in tasks.iter_rows(named=True):
        of_before = round((row["acc_untrained"] or 0.0) * row["untrained_runs"] * ROUNDED)
        told = [
            attack.place(row),
            ratio.place(row),
            [row[s] for s in STATUSES],
            [row[name] for name in (*METRICS_SHOWN, HEADLINE)],
            [row["left_out"], *(row[name] for name in COUNTED), of_before],
        ]
        by_row.setdefault(tuple(row[key] for key in BOARD), []).append(told)
    return safe([by_row[key] for key in board.select(BOARD).rows()])


def safe(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
