"""What methods cost, as benchmarks/results/ has it."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def of_defense(name: str) -> str:
    """A sentence about a defense, or that it was not measured."""
    rows = [row for row in _rows("defenses_cpu.json") if row["defense"] == name]
    if not rows:
        return "Not measured in [the table of defenses](../../../benchmarks/results/defenses_cpu.md)."
    (row,) = rows
    cut = f", cut to {row['cut']}" if row["cut"] else ""
    return (
        f"On two CPU cores, {row['members']} members of a small network (`{row['network']}`), {row['spc']} clean images per "
        f"class{cut}: {row['population /min']:.0f} networks a minute as a population, {row['a program each /min']:.1f} with a "
        f"process each; the first call, which compiles, takes {row['first call s']:.0f} seconds "
        "([all defenses](../../../benchmarks/results/defenses_cpu.md))."
    )


def of_attack(name: str) -> str:
    """A sentence about an attack, or that it was not measured."""
    rows = [row for row in _rows("attack_cost_cpu.json") if row["attack"] == name]
    if not rows:
        return "Not measured in [the table of attacks](../../../benchmarks/results/attack_cost_cpu.md)."
    each = " and ".join(f"{row['ratio']:.2f} for `{row['network']}`" for row in rows)
    return (
        f"A training step on two CPU cores, with clean training of the same network as 1: {each} "
        "([all attacks](../../../benchmarks/results/attack_cost_cpu.md)). What an attack prepares before the training comes on "
        "top."
    )


def _rows(name: str) -> list[dict]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))["rows"]
