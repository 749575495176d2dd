"""Names under which records are shown, told apart where several data sets, networks or attacks of a report have one name."""

import collections
from typing import TYPE_CHECKING, Any

from bdjax.results.apart import apart
from bdjax.results.configs import parsed

if TYPE_CHECKING:
    import polars as pl

SHOWN = 8  # characters of a digest
COLUMNS_OF_ATTACKS = ("labels", "target")  # fields of an attack that have a column of their own


def datasets(records: "pl.DataFrame") -> list[str]:
    """Names of data sets, with the beginning of their hash where several of one name and size are there: users' own may be."""
    rows = records.select("dataset", "train_images", "test_images", "data_digest").rows()
    several = collections.Counter((name, *sizes) for name, *sizes, _ in set(rows))
    return [f"{name} {digest[:SHOWN]}" if several[name, *sizes] > 1 and digest else name for name, *sizes, digest in rows]


def networks(records: "pl.DataFrame") -> list[str]:
    """Names of networks, with the beginning of the hash of their file where a user's own was edited between records."""
    rows = records.select("model", "config").rows()
    sources = {config: str((parsed(config).get("model") or {}).get("source") or "") for config in {config for _, config in rows}}
    several = collections.Counter(name for name, _ in {(name, sources[config]) for name, config in rows})
    return [f"{name} {source[:SHOWN]}" if several[name] > 1 and (source := sources[config]) else name for name, config in rows]


def attacks(records: "pl.DataFrame") -> list[str]:
    """Names of attacks, with the settings in which those differ that have one name on one data set: "blended, strength 0.5".

    The label rule and the target are left to their own columns.
    """
    rows = records.select("attack", "dataset", "profile", "config").rows()
    known = list(dict.fromkeys(rows))
    texts = apart([_settings(config) for *_, config in known], [tuple(kind) for *kind, _ in known])
    names = {row: f"{row[0]}, {text}" if text else row[0] for row, text in zip(known, texts, strict=True)}
    return [names[row] for row in rows]


def _settings(config: str | None) -> dict[str, Any]:
    """The static configuration of an attack, with the hash of a user's file, in the form of a record's."""
    attack = parsed(config).get("attack") or {}
    mine = {name: value for name, value in (attack.get("config") or {}).items() if name not in COLUMNS_OF_ATTACKS}
    return {"attack": {"config": mine | ({"source": attack["source"]} if attack.get("source") else {})}}
