"""Values of records as tables, titles and labels of figures print them."""

from collections.abc import Mapping
from typing import Any

from bdjax.results.pool import STATUSES

NONE = "–"


def name(row: Mapping[str, Any]) -> str:
    """The name of a defense as it is printed, with its :func:`marks`."""
    return str(row["defense"]) + marks(row)


def marks(row: Mapping[str, Any]) -> str:
    """† for a defense that is shown triggered images, ‡ for one that reads the test accuracy, ¶ for an earlier edition."""
    return "†" * bool(row["knows_trigger"]) + "‡" * bool(row["knows_test"]) + "¶" * bool(row.get("outdated"))


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal; a dash where it is undefined."""
    return NONE if value is None else f"{100 * value:.1f}".replace("-0.0", "0.0")


def setting(key: str, value: Any) -> str:
    """A value of a scenario as it is printed."""
    if key == "ratio":
        return f"{100 * value:g}"
    if key == "spc" and value is None:
        return "any"
    if key == "cell":
        return str(value)[:8]
    return NONE if value is None else str(value)


def ratio_title(ratio: float) -> str:
    """A poison ratio in words."""
    return "never attacked" if ratio == 0 else f"{setting('ratio', ratio)} % poisoned"


def lost(row: Mapping[str, Any]) -> str:
    """What became of the runs that are not averaged: "1 failed, 2 non-finite"; empty where there are none."""
    return ", ".join(f"{row[status]} {status.replace('_', '-')}" for status in STATUSES[1:] if row[status])
