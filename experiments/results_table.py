"""The tables of `experiments/results/`: every defense of a folder of results, with what was cut and what it took.

    python experiments/results_table.py DIR [--dataset NAME] [--attack NAME] [--ratio R] [--profile NAME]

Mean over the seeds and their range. A setting is told where it is not the method's own; seconds are wall time per member without
compilation, of the machine that the records name.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.data import spec
from bdjax.defenses import DEFENSES
from bdjax.models import cnn
from bdjax.plugins.load import factory
from bdjax.results.wording import marks, percent, ratio_title
from bdjax.store import records
from bdjax.store.hashing import plain

RATES = ("acc", "asr", "ra", "der")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for fact in ("dataset", "attack", "profile", "defense"):
        parser.add_argument(f"--{fact}")
    parser.add_argument("--ratio", type=float)
    args = parser.parse_args()
    wanted = {fact: value for fact in ("dataset", "attack", "profile", "ratio") if (value := getattr(args, fact)) is not None}
    rows = [row for row in records.read_rows(args.folder) if all(row[fact] == value for fact, value in wanted.items())]
    sections = defaultdict(list)
    for row in rows:
        if args.defense in (None, row["defense"]) or row["defense"] == "none":
            sections[row["dataset"], row["attack"], row["ratio"], row["profile"]].append(row)
    for (dataset, attack, ratio, profile), mine in sorted(sections.items()):
        if any(row["defense"] != "none" for row in mine):
            print(f"**{dataset}, {attack}, {ratio_title(ratio)}, `{profile}`**\n")
            print(table(mine), "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """One scenario: the networks as they were trained, then every defense, setting and number of clean samples."""
    groups = defaultdict(list)
    for row in rows:
        groups[order(row), row["defense"], row["hyper"], row["cell"], row["spc"]].append(row)
    lines = ["| defense | per class | ACC % | ASR % | RA % | DER % | s / member | n |", "|---|" + "---:|" * 7]
    for (_, name, _, _, spc), mine in sorted(groups.items(), key=lambda item: str(item[0])):
        fine = [row for row in mine if row["status"] == "ok"]
        told = [spread([row[rate] for row in fine]) for rate in RATES]
        if name == "none":
            told[-1] = "–"
        title = "before" if name == "none" else f"`{Path(name).name}`{marks(mine[0])}{settings(mine[0])}"
        count = str(len(fine)) if len(fine) == len(mine) else f"{len(fine)} of {len(mine)}"
        took = np.mean([row["seconds"] / row["members"] for row in fine]) if fine else np.nan
        held = "–" if name == "none" else "none" if spc is None else str(spc)
        lines.append(f"| {title} | {held} | " + " | ".join(told) + f" | {took:.1f} | {count} |")
    return "\n".join(lines)


def order(row: dict[str, Any]) -> tuple[bool, int, int]:
    """Before any defense first; then more clean samples first, and the defenses as they are listed."""
    names = list(DEFENSES)
    place = names.index(row["defense"]) if row["defense"] in names else len(names)
    return row["defense"] != "none", 10_000 - (row["spc"] or 0), 10_000 + place


def settings(row: dict[str, Any]) -> str:
    """What differs from the method's own configuration and hyper-parameters on this data set."""
    config = json.loads(row["config"])
    own = factory("defense", row["defense"], DEFENSES)(cnn(spec(row["dataset"])), None, profile=row["profile"])
    pairs = [(config["defense"]["config"], plain(own.config)), (json.loads(row["hyper"]), plain(own.hyper))]
    changed = [f"{key} {value}" for mine, default in pairs for key, value in mine.items() if value != default[key]]
    return ", " + ", ".join(changed) if changed else ""


def spread(values: list[float | None]) -> str:
    """Mean and range in percent."""
    numbers = [np.nan if value is None else value for value in values]
    if not numbers:
        return "–"
    return f"{percent(float(np.mean(numbers)))} [{percent(min(numbers))}, {percent(max(numbers))}]"


if __name__ == "__main__":
    main()
