"""Tables for people: percent, intervals, marks and notes, with the same cells in Markdown and in HTML; and CSV for programs."""

from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.reporting.notes import notes
from bdjax.results.apart import settings_of
from bdjax.results.mitigation import LIMITS, Limits
from bdjax.results.pool import BOARD, GROUP, leaderboard, table
from bdjax.results.wording import NONE, lost, name, percent, setting
from bdjax.sweep.goal import named

if TYPE_CHECKING:
    import polars as pl

METRICS_SHOWN = ("acc", "asr", "ra", "arr", "der")
HEADLINE = "mitigated"
NAMES = {
    HEADLINE: "mitigated %",
    "left_out": "not attacked",
    "train_images": "training images",
    "ratio": "poison ratio %",
    "hyper": "hyper-parameters",
    "cost": "cost %",
    "lost": "not averaged",
    **{metric: f"{metric.upper()} %" for metric in METRICS_SHOWN},
}
HIDDEN = ("training", "variant", "attack_variant")  # columns by which rows are grouped, whose values say nothing to a reader
LAST = ("settings", "cell")  # columns that are shown only where two rows would look alike without them
ALWAYS = ("attack", "ratio", "defense")
NUMERIC = ("train_images", "width", "target", "ratio", "spc", HEADLINE, *METRICS_SHOWN, "n", "left_out", "tasks", "cost")


class Cell(NamedTuple):
    """What stands in a table and what it is sorted by (None: last)."""

    text: str
    order: float | str | None


class Printed(NamedTuple):
    """A table ready to be laid out."""

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    columns: tuple[str, ...]  # what each column is called in the frames of bdjax.results.pool
    about: tuple[dict[str, Any], ...]  # of each row, the columns of the frame by which rows are grouped
    constants: dict[str, str]  # columns with one value, which stands above the table
    notes: tuple[str, ...]


def full(records: "pl.DataFrame", limits: Limits = LIMITS) -> Printed:
    """Every scenario and defense (:func:`bdjax.results.pool.table`)."""
    return full_of(table(records, limits), limits)


def full_of(rows: "pl.DataFrame", limits: Limits = LIMITS) -> Printed:
    """Every scenario and defense, from rows of :func:`bdjax.results.pool.table` with these limits."""
    return _printed(rows, GROUP, LAST, limits, always=ALWAYS)


def board(records: "pl.DataFrame", limits: Limits = LIMITS) -> Printed | None:
    """The leaderboard (:func:`bdjax.results.pool.leaderboard`); None where no defense met a poisoned member."""
    rows = leaderboard(records, limits)
    return None if rows.is_empty() else board_of(rows, limits)


def board_of(rows: "pl.DataFrame", limits: Limits = LIMITS) -> Printed:
    """The leaderboard, from rows of :func:`bdjax.results.pool.leaderboard` with these limits, at least one."""
    return _printed(_told_apart(rows), (*BOARD, "settings"), LAST, limits, always=("defense",), more=("tasks", "cost"))


def markdown(records: "pl.DataFrame", limits: Limits = LIMITS) -> str:
    """The table of all scenarios and defenses as Markdown (:func:`markdown_of`)."""
    return markdown_of(full(records, limits))


def markdown_of(printed: Printed) -> str:
    """A table as Markdown, percent with 95 % intervals; what is constant above, notes below."""
    lines = [", ".join(f"{key}: {value}" for key, value in printed.constants.items()), ""] if printed.constants else []
    lines.append("| " + " | ".join(printed.heads) + " |")
    lines.append("|" + "|".join("---:" if numeric else "---" for numeric in printed.numeric) + "|")
    lines += ["| " + " | ".join(one.text.replace("|", "\\|") for one in row) + " |" for row in printed.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in printed.notes), ""])


def csv(records: "pl.DataFrame", limits: Limits = LIMITS) -> str:
    """:func:`bdjax.results.pool.table` as comma-separated values: fractions in full precision."""
    return table(records, limits).write_csv()


def _told_apart(rows: "pl.DataFrame") -> "pl.DataFrame":
    """The leaderboard with ``settings``: the fields in which the configurations of a defense differ, with a row's values."""
    import polars as pl

    texts = settings_of(rows)
    return rows.with_columns(pl.Series("settings", [texts[key] for key in rows.select("defense", "variant").rows()], pl.String))


def _printed(
    rows: "pl.DataFrame",
    group: tuple[str, ...],
    last: tuple[str, ...],
    limits: Limits,
    always: tuple[str, ...],
    more: tuple[str, ...] = (),
) -> Printed:
    shown, constants = columns_of(rows, group, last, always)
    defended = bool((rows[f"{HEADLINE}_n"] > 0).any() or (rows["left_out"] > 0).any())
    columns = [*shown, *([HEADLINE] if defended else []), *METRICS_SHOWN, "n", *more]
    if (rows["left_out"] > 0).any():
        columns.append("left_out")
    if (rows["ok"] < rows["runs"]).any():
        columns.append("lost")
    if rows["remark"].is_not_null().any():
        columns.append("remark")
    return Printed(
        heads=tuple(NAMES.get(column, column) for column in columns),
        numeric=tuple(column in NUMERIC for column in columns),
        rows=tuple(tuple(cell(row, column) for column in columns) for row in rows.iter_rows(named=True)),
        columns=tuple(columns),
        about=tuple(rows.select(group).iter_rows(named=True)),
        constants=constants,
        notes=notes(rows, limits),
    )


def columns_of(
    rows: "pl.DataFrame", group: tuple[str, ...], last: tuple[str, ...], always: tuple[str, ...]
) -> tuple[list[str], dict[str, str]]:
    """The columns of a group that are shown, and those with one value by name, which stands above the table.

    Args:
      rows: pooled by the group.
      group: columns.
      last: of these, the ones that are shown only where two rows would look alike without them.
      always: of these, the ones that are shown though they have one value.
    """
    known = [key for key in group if key not in HIDDEN]
    shown = [key for key in known if key in always or (key not in last and _varies(rows, key))]
    rest = [key for key in last if key in known]
    for key in rest:
        if rows.select(shown).is_duplicated().any() and (key == rest[-1] or _varies(rows, key)):
            shown.append(key)
    constants = {
        NAMES.get(key, key): _class_title(rows.row(0, named=True)) if key == "target" else setting(key, rows[key][0])
        for key in known
        if key not in (*shown, *last, "hyper")
    }
    return shown, constants


def cell(row: dict[str, Any], column: str) -> Cell:
    """A value of a pooled row as it is printed."""
    if column in METRICS_SHOWN or column == HEADLINE:
        return _measure(row, column)
    if column == "left_out":
        return Cell(str(row[column]) if row[column] else "", row[column])
    if column == "remark":
        return Cell(row[column] or "", row[column])
    if column == "target":
        return Cell(_class_title(row), row[column])
    if column == "n":
        return Cell(str(row["ok"]) if row["ok"] == row["runs"] else f"{row['ok']} of {row['runs']}", row["ok"])
    if column == "lost":
        return Cell(lost(row), row["runs"] - row["ok"])
    value = row[column]
    if column == "defense":
        return Cell(name(row), value)
    if column == "attack":
        return Cell(setting(column, value) + "§" * bool(row["warning"]), value)
    if column == "cost":
        return Cell(percent(value), value)
    if column == "spc" and row["defense"] == "none":
        return Cell(NONE, None)
    return Cell(setting(column, value), value)


def _class_title(row: dict[str, Any]) -> str:
    """The target of a row with the name of its class; a dash where every class has its own."""
    return NONE if row["target"] is None else named(row["target"], row["target_class"])


def _measure(row: dict[str, Any], metric: str) -> Cell:
    if (metric in ("arr", "der") and row["defense"] == "none") or (metric == "der" and row.get("ratio") == 0):
        return Cell(NONE, None)  # nothing was defended, or there is no backdoor to remove
    value, low, high, runs = (row[f"{metric}{end}"] for end in ("", "_low", "_high", "_n"))
    text = percent(value)
    if low is not None:
        text += f" [{percent(low)}, {percent(high)}]"
    if runs not in (0, row["ok"]):
        text += f" (n={runs})"
    return Cell(text, value)


def split_interval(text: str) -> tuple[str, str]:
    """A cell's value, and the interval and the count behind it, which are printed smaller; "" where there is no interval."""
    value, bracket, rest = text.partition(" [")
    return value, (bracket + rest).strip()


def _varies(rows: "pl.DataFrame", key: str) -> bool:
    """Whether a column distinguishes rows; hyper-parameters differ between defenses anyway: only a choice inside one counts."""
    if key == "hyper":
        return rows.select("defense", "hyper").unique().height > rows["defense"].n_unique()
    return rows[key].n_unique() > 1
