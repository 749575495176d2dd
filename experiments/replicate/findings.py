"""Do our numbers agree with the field's? Every table and picture of this folder's README, from the records.

    python experiments/replicate/findings.py SURVEY REFERENCE SENSITIVITY VARIATION [--hundred DIR] [--rates DIR] [--out DIR]

The folders are those of experiments/survey.py (small, with its models that nobody attacked), reference.py, sensitivity.py and
variation.py here; --hundred is one that holds what the pages in experiments/results/ made with 100 clean samples per class, and
--rates one of sensitivity.py with ``--spc 100`` and a higher rate for each defense. Writes ``findings.md`` and pictures.
"""

import argparse
from pathlib import Path

import agreement
import attacked
import claims
import numpy as np
import polars as pl
import profiles
from runs import by_defense, read

from bdjax.reporting import overall
from bdjax.reporting.rankings import rank_diagram
from bdjax.results.methods import methods
from bdjax.results.sensitivity import swept
from bdjax.store import records

SPC = (2, 10)  # of the small survey


def main() -> None:
    """Write the tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("survey", "reference", "sensitivity", "variation"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--hundred", type=Path, help="the same networks with 100 clean samples per class")
    parser.add_argument("--rates", type=Path, help="some defenses at higher rates with 100 clean samples per class")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    survey, published, varied = read(args.survey, profile="corrected"), read(args.reference), read(args.variation)
    poisoned, clean = survey.filter(pl.col("ratio") == 0.1), survey.filter(pl.col("ratio") == 0)
    budgets = claims.budgets_of(poisoned, SPC)
    ten = poisoned.filter((pl.col("spc") == SPC[-1]) | pl.col("spc").is_null())
    found = agreement.pairs(ten if args.hundred is None else pl.concat([ten, hundred(args.hundred, ten)]))
    faster = [] if args.rates is None else agreement.pairs(read(args.rates, spc=100))
    compared = profiles.both(poisoned, published, SPC[-1])
    parts = {
        "Attacks, published and ours": attacked.table(poisoned.filter(pl.col("defense") == "none")),
        "Defenses, published and ours": agreement.summary(found) + "\n\n" + agreement.table(found),
        **({"The same at higher rates, 100 per class": agreement.table(faster)} if faster else {}),
        "(a) Newer defenses against FT and FP": claims.newer_against_old(budgets),
        "(b) What results vary with": claims.variation(varied) + "\n\n" + claims.spread_over_attacks(budgets[SPC[-1]]),
        "(c) Two clean samples per class instead of ten": claims.few_samples(budgets[SPC[0]], budgets[SPC[-1]]),
        "(d) Low ASR and recovered accuracy": claims.recovered(budgets),
        "The published code's behaviour": profiles.table(compared),
        "Models that nobody attacked, and what a repair takes": cost(clean, survey),
        "Along the main hyper-parameters": along(records.read(args.sensitivity)),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in parts.items())
    head = "# Findings\n\nWritten by `python experiments/replicate/findings.py`; what it says is in [README.md](README.md).\n\n"
    (args.out / "findings.md").write_text(head + text + "\n", encoding="utf-8")
    profiles.picture(compared).savefig(args.out / "reference.png", dpi=130)
    found = methods(survey, SPC[-1], best=("der",))  # the published claims are about DER
    overall.heat_map(found).savefig(args.out / "heat-map.png", dpi=130)
    rank_diagram(found, "der").savefig(args.out / "ranks.png", dpi=130)
    print(text)


def hundred(folder: Path, ten: pl.DataFrame) -> pl.DataFrame:
    """The runs with 100 clean samples per class, in the hyper-parameters of those with 10."""
    same = ten.select("defense", "attack", "hyper", "model", "width", "train_images").unique()
    rows = read(folder, profile="corrected", spc=100).filter(pl.col("ratio") == 0.1)
    return rows.join(same, on=same.columns, how="semi").select(ten.columns)


def cost(clean: pl.DataFrame, every: pl.DataFrame) -> str:
    """What a defense takes from the accuracy of models that nobody attacked, and how long it runs."""
    lines = ["| defense | accuracy lost, 2 per class | 10 per class | seconds per member, 2 | 10 |", "|---|" + "---:|" * 4]
    seconds = pl.col("seconds") / pl.col("members")
    free = by_defense(clean.filter(pl.col("defense") != "none"), spc=None)
    lost = {spc: {**by_defense(clean, spc=spc), **free} for spc in SPC}
    for name in sorted(lost[SPC[-1]], key=lambda name: lost[SPC[-1]][name].mean("arr")):
        cells = []
        for spc in SPC:
            runs = 100 * (lost[spc][name].rates["acc_before"] - lost[spc][name].rates["acc"])
            cells.append(f"{np.mean(runs):.1f} [{runs.min():.1f}, {runs.max():.1f}]")
        for spc in SPC:
            mine = every.filter((pl.col("defense") == name) & ((pl.col("spc") == spc) | pl.col("spc").is_null()))
            cells.append(f"{mine.select(seconds.median()).item():.1f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Points of accuracy, mean [lowest, highest seed]; seconds are the median over the attacks."])


def along(rows: pl.DataFrame) -> str:
    """DER at every value of each hyper-parameter, mean over attacks and seeds."""
    lines = ["| defense | hyper-parameter | DER at each value | points between best and worst |", "|---|---|---|---:|"]
    for one in swept(rows):
        values = one.lines[0].values
        means = [np.mean([line.rates["der"][i] for line in one.lines if line.values == values]) for i in range(len(values))]
        told = " · ".join(f"{value:g}: {100 * mean:.0f}" for value, mean in zip(values, means, strict=True))
        lines.append(f"| `{one.title}` | {one.leaf} | {told} | {100 * (max(means) - min(means)):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
