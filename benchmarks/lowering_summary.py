"""What the rows of ``benchmarks/lowerings.py`` say: winners per shape, and means per candidate."""

import math
from collections import defaultdict
from typing import Any

from benchmarks.lowering_candidates import DIRECTIONS

Row = dict[str, Any]


def summary(rows: list[Row]) -> str:
    """Markdown: the fastest candidate per shape and direction, then geometric means per kind and candidate.

    Args:
      rows: rows with "shape", "count", "kind", "direction", "members", "candidate", "contends" and, where timed, "GFLOP/s" and
        "of ceiling".
    """
    timed = [row for row in rows if "of ceiling" in row]
    if not timed:
        return ""
    members = sorted({row["members"] for row in timed})
    ends = list(dict.fromkeys((members[0], members[-1])))
    return "\n\n".join([*_winners(timed, ends), *_means(timed, ends)])


def _winners(rows: list[Row], ends: list[int]) -> list[str]:
    best: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = (row["shape"], row["direction"], row["members"])
        if row["contends"] and row["of ceiling"] > best.get(key, {"of ceiling": 0.0})["of ceiling"]:
            best[key] = row
    columns = [(direction, count) for direction in DIRECTIONS for count in ends]
    lines = []
    for name, count in dict.fromkeys((row["shape"], row["count"]) for row in rows):
        cells = [_cell(best.get((name, *column))) for column in columns]
        lines.append([name, str(count), *cells])
    heads = ["shape", "count", *(f"{direction}, {count} members" for direction, count in columns)]
    text = "## Winners\n\nFastest candidate that a layer could use as it is (no loop, NHWC), with its fraction of the ceiling."
    return [text, _table(heads, lines)]


def _means(rows: list[Row], ends: list[int]) -> list[str]:
    fastest: dict[tuple[str, str, int], float] = defaultdict(float)
    for row in rows:
        key = (row["shape"], row["direction"], row["members"])
        fastest[key] = max(fastest[key], row["of ceiling"] * row["contends"])
    groups: dict[tuple[str, str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["members"] in ends:
            reference = fastest[row["shape"], row["direction"], row["members"]] or row["of ceiling"]
            group = (row["kind"], row["direction"], row["members"], row["candidate"])
            groups[group].append((row["of ceiling"], row["of ceiling"] / reference))
    lines = []
    for (kind, direction, members, candidate), values in groups.items():
        fractions, relative = zip(*values, strict=True)
        line = [kind, direction, members, candidate, f"{_geometric(fractions):.3g}", f"{_geometric(relative):.3g}", len(values)]
        lines.append([str(cell) for cell in line])
    order = {direction: i for i, direction in enumerate(DIRECTIONS)}
    lines.sort(key=lambda line: (line[0], order[line[1]], int(line[2]), -float(line[5])))
    text = "## Means\n\nGeometric means over the shapes a candidate was timed on (their number is in the last column)."
    return [text, _table(["kind", "direction", "members", "candidate", "of ceiling", "of the fastest", "shapes"], lines)]


def _geometric(values: tuple[float, ...]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _cell(row: Row | None) -> str:
    return f"{row['candidate']} {row['of ceiling']:.2g}" if row else "–"


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
