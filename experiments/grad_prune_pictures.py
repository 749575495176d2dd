"""The picture of `experiments/grad_prune.md`: ASR and ACC after each part of Grad-Prune, a panel per attack, a dot per seed.

    python experiments/grad_prune_pictures.py DIR --save FILE.png [--spc 10] [--model NAME]

DIR is a folder of `experiments/grad_prune_parts.py`. Where a part was run more than once, the newest records count.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bdjax.reporting.figures import COLORS, GREY, PAPER, legend, panels_of, styled
from bdjax.store import records

PARTS = {
    "tuning": "tuning alone",
    "pruning": "pruning alone",
    "drift": "drift alone",
    "published_rounds": "published rounds",
    "published": "published, whole",
    "grad_prune": "corrected, whole",
}
TOLERANCES = {0.1: COLORS[0], 0.3: COLORS[1]}


def main() -> None:
    """Draw one picture of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--spc", type=int, default=10)
    parser.add_argument("--model", default="cnn")
    args = parser.parse_args()
    fine = [row for row in records.read_rows(args.folder) if row["ratio"] > 0 and row["status"] == "ok"]
    drawn = picture([row for row in fine if row["model"] == args.model], args.spc)
    drawn.savefig(args.save, dpi=110)
    print(args.save)


@styled
def picture(rows: list[dict[str, Any]], spc: int) -> Figure:
    """A panel per attack: hollow the network as it came, filled after each part."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows if part_of(row) and row["spc"] == spc))
    columns = min(4, len(attacks))
    lines = -(-len(attacks) // columns)
    figure, panels = panels_of(lines, 2 * columns, (3.1 * columns + 1.2, 2.1 * lines + 0.5), sharey=True)
    for axis in panels.flat[2 * len(attacks) :]:
        axis.set_visible(False)
    for attack, (left, right) in zip(attacks, zip(*[iter(panels.flat)] * 2, strict=True), strict=False):
        before = [row for row in rows if row["attack"] == attack and row["defense"] == "none"]
        mine = newest([row for row in rows if row["attack"] == attack and row["spc"] == spc and part_of(row)])
        for axis, metric in ((left, "asr"), (right, "acc")):
            axis.axvspan(*span([100 * row[metric] for row in before]), color=GREY, alpha=0.35, lw=0)
            for y, part in enumerate(PARTS):
                for shift, (tolerance, color) in zip((-0.16, 0.16), TOLERANCES.items(), strict=True):
                    values = [100 * row[metric] for row in mine if part_of(row) == part and close(row, tolerance)]
                    axis.plot(values, [y + shift] * len(values), "o", color=color, ms=4.5, mec=PAPER, mew=0.5)
            axis.set(xlim=(-3, 103), ylim=(len(PARTS) - 0.4, -0.6), xticks=[0, 50, 100])
            axis.set_title(f"{attack}\nASR %" if metric == "asr" else "\nACC %", fontsize=8.5)
            axis.grid(True, axis="x")
            axis.tick_params(axis="y", length=0)
        left.set_yticks(range(len(PARTS)), PARTS.values(), fontsize=8)
    told: list[Any] = [(f"tolerance {tolerance:g}", {"color": color, "marker": "o"}) for tolerance, color in TOLERANCES.items()]
    legend(figure, [*told, ("as it came, range", {"color": GREY, "lw": 5, "alpha": 0.5})])
    return figure


def part_of(row: dict[str, Any]) -> str | None:
    """Which part a record is of."""
    name = row["defense"].rpartition(":")[2]
    return name if name in PARTS else None


def close(row: dict[str, Any], tolerance: float) -> bool:
    """Whether a record has this tolerance; tuning alone has none to keep to."""
    return part_of(row) == "tuning" or abs(json.loads(row["hyper"])["tolerance"] - tolerance) < 1e-6


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per part, hyper-parameters and seed."""
    best: dict[Any, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["created"]):
        best[row["defense"], row["hyper"], row["seed"]] = row
    return list(best.values())


def span(values: list[float]) -> tuple[float, float]:
    """From the smallest to the largest, wide enough to be seen."""
    return min(values) - 0.7, max(values) + 0.7


if __name__ == "__main__":
    main()
