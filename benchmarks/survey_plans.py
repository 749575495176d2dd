"""The whole survey, planned for devices that are not here (`bdjax plan experiments/survey.py --target tpu:v5e-8`), in one table.

    pip install libtpu      # for TPUs; for CUDA what `bdjax plan --target cuda:h200` names
    python -m benchmarks.survey_plans --targets tpu:v5e-8 tpu:v5p-8 cuda:h200-8 --out benchmarks/results/survey_plans

One row for every target, data set and network, of all its attacks: estimates of the target's compiler, and for GPUs bounds from
the data sheet. Rows are written as they are made, and what was compiled is kept in the cache: the same command goes on.
"""

import argparse
import dataclasses
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from bdjax.population import named, targets
from bdjax.sweep.estimate import Overview, overview
from benchmarks.measure import write

SURVEY = Path(__file__).parents[1] / "experiments" / "survey.py"


def main() -> None:
    """Plan target by target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", required=True, help="such as tpu:v5e-8, cuda:h200-8")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    whole = dataclasses.replace(runpy.run_path(str(SURVEY))["grid"], precision=args.precision)
    rows: list[dict[str, Any]] = []
    for target in args.targets:
        for dataset in whole.dataset:
            for model in whole.model:
                part = dataclasses.replace(whole, dataset=(dataset,), model=(model,))
                found = overview(part, target=target, say=lambda line: print(line, file=sys.stderr, flush=True))
                rows.append(row_of(found, target, dataset, model))
                write(args.out, f"python -m benchmarks.survey_plans {shlex.join(sys.argv[1:])}", rows + totals(rows), NOTES)


NOTES = (
    "Estimates: nothing here was measured. `img/s` is that of one device, a bound from the data sheet where `at most` is True. "
    "Hours are device-hours, without compilation and evaluation; those of defenses are at the rate of training, of the defenses "
    "whose configuration names its epochs. `compile s` is one training program on the machine of the table."
)


def row_of(found: Overview, target: str, dataset: str, model: str) -> dict[str, Any]:
    """One network on one data set, with all its attacks."""
    first = found.cells[0]
    assert first.rate is not None and first.member_bytes is not None and first.compile_seconds is not None
    return {
        "target": target,
        "data set": dataset,
        "network": model,
        "form": named(first.execution._replace(devices=1)),
        "img/s": round(first.rate / first.execution.devices),
        "at most": first.measured.startswith("at most"),
        "MB/member": round(first.member_bytes / 1e6),
        "members/device": first.members_per_device,
        "compile s": round(first.compile_seconds),
        "members": found.members,
        "experiments": found.experiments,
        "training h": found.training_hours,
        "defenses h": found.defense_hours,
        "days": (found.training_hours + found.defense_hours) / targets.parse(target).devices / 24,
    }


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sum of every target."""
    summed = ("members", "experiments", "training h", "defenses h", "days")
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        found.append(
            {"target": target, "data set": "all", "network": "all", **{name: sum(row[name] for row in mine) for name in summed}}
        )
    return found


if __name__ == "__main__":
    main()
