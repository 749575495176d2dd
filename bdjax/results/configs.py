"""Facts from the full static configuration of a record, which is parsed once for all rows that share it."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bdjax.sweep import goal

if TYPE_CHECKING:
    import polars as pl


def from_configs(records: "pl.DataFrame", read: Callable[[str | None], str | None]) -> "pl.Series":
    """What ``read`` returns for the configuration of each row; many rows share a configuration, so each is read once."""
    import polars as pl

    known = {config: read(config) for config in records["config"].unique()}
    return pl.Series([known[config] for config in records["config"]], dtype=pl.String)


@functools.lru_cache(maxsize=1 << 14)
def parsed(config: str | None) -> dict[str, Any]:
    """A row's full static configuration; callers share it and must not change it."""
    found: dict[str, Any] = json.loads(config or "{}")
    return found


def trained(config: str | None) -> str:
    """The part of a row's full static configuration that its training decides, as JSON: equal for all defenses of one model."""
    settings = parsed(config)
    return json.dumps({key: settings[key] for key in sorted(settings) if key not in ("defense", "spc")}, sort_keys=True)


def training(config: str | None) -> str:
    """A short name of :func:`trained`: rows before and after a defense that have it in common are of the same networks."""
    return hashlib.sha256(trained(config).encode()).hexdigest()[:8]


def precision(config: str | None) -> str:
    """The dtype of activations and convolutions in a row's full static configuration; float32 where it names none."""
    return str((parsed(config).get("model") or {}).get("precision", "float32"))


def depth(config: str | None) -> str:
    """Blocks per stage that a row's network was cut to, or "whole"."""
    blocks = (parsed(config).get("model") or {}).get("depth")
    return "whole" if blocks is None else str(blocks)


def labels(config: str | None) -> str | None:
    """The label rule of a row's attack: "all_to_one", "all_to_all", or None where its configuration has none."""
    return goal.rule((parsed(config).get("attack") or {}).get("config"))


def variant(config: str | None) -> str:
    """The static configuration of a row's defense as JSON; with the ``source`` of one in a user's file, which changes with it."""
    defense = parsed(config).get("defense") or {}
    source = {"source": defense["source"][:8]} if defense.get("source") else {}
    return json.dumps({**(defense.get("config") or {}), **source} or None, sort_keys=True)


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that do not have one value everywhere, in their order; one that is missing counts as None."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
