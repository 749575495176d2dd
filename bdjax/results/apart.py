"""What sets records apart that look alike: the fields in which their configurations differ, in the words of the flags."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bdjax.results.configs import differing, parsed

if TYPE_CHECKING:
    import polars as pl

METHODS = ("attack", "defense")  # parts of a configuration whose own fields are named without the part
ELSEWHERE = ("spc", "schema")  # fields of a record's configuration that have a column of their own, or say nothing to a reader
DIGEST = 64  # characters of a SHA-256 digest, of which the first eight are shown


def apart(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each of some configurations apart from the others.

    Args:
      settings: configurations, as nested fields.

    Returns:
      Of each, the fields in which any two differ, with its own values: "strength 0.5, recipe.lr 0.1". A field that a
      configuration does not have is not named there; "" where all are equal.
    """
    flat = [_fields(one) for one in settings]
    moving = differing(flat)
    return [", ".join(f"{name} {_value(one[name])}" for name in moving if name in one) for one in flat]


def with_settings(records: "pl.DataFrame", alike: Sequence[str]) -> "pl.DataFrame":
    """Records with ``settings``: what sets those apart that have the same values in the columns ``alike``, or ""."""
    import polars as pl

    kinds = records.select(*alike, "config").unique(maintain_order=True)
    names = [""] * kinds.height
    for rows in kinds.with_row_index("place").partition_by(alike):
        if rows.height > 1:
            given = [{key: value for key, value in parsed(config).items() if key not in ELSEWHERE} for config in rows["config"]]
            for place, text in zip(rows["place"], apart(given), strict=True):
                names[place] = text
    kinds = kinds.with_columns(pl.Series("settings", names, pl.String))
    return records.join(kinds, on=[*alike, "config"], how="left", nulls_equal=True, maintain_order="left")


def settings_of(rows: "pl.DataFrame") -> dict[tuple[str, str], str]:
    """What sets the static configurations of a defense apart, by the defense and the configuration (its ``variant``, as JSON)."""
    found: dict[tuple[str, str], str] = {}
    for one in rows.select("defense", "variant").unique(maintain_order=True).partition_by("defense"):
        given = [{"defense": {"config": json.loads(variant) or {}}} for variant in one["variant"]]
        found |= dict(zip(one.rows(), apart(given), strict=True))
    return found


def _fields(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The nested fields of a configuration by the names that are shown: those of a method alone, others after their part."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = (*path, key)
        if isinstance(value, Mapping):
            found |= _fields(value, inner)
        elif inner[0] in METHODS and inner[1:2] == ("config",):
            found[".".join(inner[2:])] = value
        else:
            found[".".join(inner)] = value
    return found


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value[:8] if len(value) == DIGEST else value
    return json.dumps(value)
