"""What stands below a table: how its numbers came about, and what its marks mean."""

from typing import TYPE_CHECKING

from bdjax.reporting.glossary import note
from bdjax.results.mitigation import Limits
from bdjax.results.soundness import NOTES

if TYPE_CHECKING:
    import polars as pl


def verdicts(rows: "pl.DataFrame", limits: Limits) -> list[str]:
    """What the headline counts, where it counts something."""
    counted, left_out = int(rows["mitigated_n"].sum()), int(rows["left_out"].sum())
    if not counted + left_out:
        return []
    text = (
        f"Mitigated: the share of attacked runs with {limits.text()}; the mean over runs and its 95 % stratified bootstrap "
        "interval. A run that failed or diverged has not mitigated; an infeasible one is not counted."
    )
    if left_out:
        text += (
            f" Of {counted + left_out:,} runs at ratios above 0, {left_out:,} are left out of this share (column not attacked), "
            "because there was no attack to mitigate: the ASR before the defense was already within the limit, or the network "
            "was at chance, predicted one class, or was not trained."
        )
    return [text]


def notes(rows: "pl.DataFrame", limits: Limits) -> tuple[str, ...]:
    """The notes of a table of pooled rows (:mod:`bdjax.results.pool`), in their order."""
    lines = verdicts(rows, limits)
    lines += [
        "Interquartile mean over n runs (seeds; the plain mean for fewer than four) and, in brackets, its 95 % stratified "
        "bootstrap interval; one run has no interval."
    ]
    lines += [text for mark, text in NOTES.items() if rows["remark"].str.contains(mark, literal=True).any()]
    if "ratio" in rows.columns and (rows["ratio"] == 0).any():
        lines.append(
            "Poison ratio 0: models nobody attacked. Their ARR is what the defense costs them, their ASR the rate at which they "
            "call triggered images the attack's target; with no backdoor to remove, DER says nothing there (the CSV file has it)."
        )
    if rows.filter(rows["defense"] != "none")["spc"].null_count():
        lines.append("spc any: the defense needs no clean data, so its row holds for every number of clean samples per class.")
    lines += marks(rows)
    if (rows["runs"] > rows["ok"]).any():
        lines.append("n counts the runs averaged, of all that were started.")
    for reason in rows["reason"].drop_nulls().unique(maintain_order=True):
        lines.append(f"Not averaged: {reason}.")
    return tuple(lines)


def marks(rows: "pl.DataFrame") -> list[str]:
    """What the marks of pooled rows mean: † ‡ of what a defense knows, ¶ of an earlier edition, § of a warning in the records."""
    lines = []
    if rows["knows_trigger"].any():
        lines.append(note("†"))
    if rows["knows_test"].any():
        lines.append(note("‡"))
    for old in rows["outdated"].drop_nulls().unique(maintain_order=True) if "outdated" in rows.columns else ():
        if old:
            lines.append(f"¶ {old}: the method has been corrected since; the same run makes these records again.")
    mark = "§ " if "attack" in rows.columns else "Of some networks behind this table: "
    lines += [f"{mark}{warning}." for warning in rows["warning"].drop_nulls().unique(maintain_order=True)]
    return lines
