"""What sets records apart that look alike: the fields in which their configurations differ, in the words of the flags."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bdjax.results.configs import differing, from_configs, parsed, variant

if TYPE_CHECKING:
    import polars as pl

METHODS = ("attack", "defense")  # parts of a configuration whose own fields are named without the part
ELSEWHERE = ("spc", "schema")  # fields of a record's configuration that have a column of their own, or say nothing to a reader
DIGEST = 64  # characters of a SHA-256 digest, of which the first eight are shown


def apart(settings: Sequence[Mapping[str, Any]], kinds: Iterable[Hashable] | None = None) -> list[str]:
    """What sets each of some configurations apart from the others of its kind.

    Args:
      settings: configurations, as nested fields.
      kinds: of each; None = all are of one kind.

    Returns:
      Of each, the fields in which any two of its kind differ, with its own values: "strength 0.5, recipe.lr 0.1". A field that a
      configuration does not have is not named there; "" where all are equal.
    """
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate([None] * len(settings) if kinds is None else kinds):
        places.setdefault(kind, []).append(place)
    texts = [""] * len(settings)
    for mine in places.values():
        if len(mine) == 1:
            continue  # nothing to be told from
        flat = [_fields(settings[place]) for place in mine]
        moving = differing(flat)
        for place, one in zip(mine, flat, strict=True):
            texts[place] = ", ".join(f"{name} {shown(one[name])}" for name in moving if name in one)
    return texts


def with_settings(records: "pl.DataFrame", alike: Sequence[str]) -> "pl.DataFrame":
    """Records with ``settings``: what sets those apart that have the same values in the columns ``alike``, or "".

    Trainings are told apart whichever defenses ran on them, so that a defense that ran on one of two says on which.
    """
    import polars as pl

    known = records.select(*alike, "config").unique(maintain_order=True)
    given = [{key: value for key, value in parsed(config).items() if key not in ELSEWHERE} for config in known["config"]]
    trained = [{key: value for key, value in one.items() if key != "defense"} for one in given]
    defended = [{key: value for key, value in one.items() if key == "defense"} for one in given]
    both = zip(
        apart(trained, known.select(key for key in alike if key != "defense").iter_rows()),
        apart(defended, known.select(alike).iter_rows()),
        strict=True,
    )
    known = known.with_columns(pl.Series("settings", [", ".join(filter(None, texts)) for texts in both], pl.String))
    return records.join(known, on=[*alike, "config"], how="left", nulls_equal=True, maintain_order="left")


def settings_of(rows: "pl.DataFrame") -> dict[tuple[str, str], str]:
    """What sets the static configurations of a defense apart, by the defense and the configuration (its ``variant``, as JSON)."""
    known = rows.select("defense", "variant").unique(maintain_order=True)
    given = [{"defense": {"config": json.loads(variant) or {}}} for variant in known["variant"]]
    return dict(zip(known.rows(), apart(given, known["defense"]), strict=True))


def runs_apart(records: "pl.DataFrame") -> "Iterator[tuple[str, pl.DataFrame]]":
    """The records of each defense with each of its settings, one kind after another, with a title: "ft, lr 0.1".

    The title names the hyper-parameters and static settings in which the records of one defense differ.
    """
    for part in records.partition_by("defense", maintain_order=True):
        name = part["defense"][0].rpartition(":")[2]
        variants = from_configs(part, variant).alias("variant")
        parts = part.with_columns(variants).partition_by("variant", "hyper", maintain_order=True)
        given = [{**(json.loads(one["variant"][0]) or {}), **json.loads(one["hyper"][0] or "{}")} for one in parts]
        for text, one in zip(apart([{"defense": {"config": mine}} for mine in given]), parts, strict=True):
            yield (f"{name}, {text}" if text else name), one.drop("variant")


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


def shown(value: Any) -> str:
    """A value of a configuration as titles, labels and tables print it: as flags take it, digests cut short."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value[:8] if len(value) == DIGEST else value
    return json.dumps(value)
