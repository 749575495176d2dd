"""What the full static configuration of a record tells, read once for all rows that share it."""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bdjax.sweep import goal

if TYPE_CHECKING:
    import polars as pl


def told_of(records: "pl.DataFrame", tell: Callable[[str | None], str | None]) -> "pl.Series":
    """What ``tell`` says of each row's configuration; few configurations are many rows', so each is read once."""
    import polars as pl

    known = {config: tell(config) for config in records["config"].unique()}
    return pl.Series([known[config] for config in records["config"]], dtype=pl.String)


@functools.lru_cache(maxsize=1 << 14)
def parsed(config: str | None) -> dict[str, Any]:
    """A row's full static configuration; it is read for many purposes, and not to be changed."""
    found: dict[str, Any] = json.loads(config or "{}")
    return found


def trained(config: str | None) -> str:
    """The part of a row's full static configuration that its training decides, as JSON: equal for all defenses of one model."""
    told = parsed(config)
    return json.dumps({key: told[key] for key in sorted(told) if key not in ("defense", "spc")}, sort_keys=True)


def training(config: str | None) -> str:
    """A short name of :func:`trained`: rows before and after a defense that have it in common are of the same networks."""
    return hashlib.sha256(trained(config).encode()).hexdigest()[:8]


def precision(config: str | None) -> str:
    """The dtype of activations and convolutions in a row's full static configuration; float32 where it says nothing."""
    return str((parsed(config).get("model") or {}).get("precision", "float32"))


def depth(config: str | None) -> str:
    """Blocks per stage that a row's network was cut to, or "whole"."""
    told = (parsed(config).get("model") or {}).get("depth")
    return "whole" if told is None else str(told)


def labels(config: str | None) -> str | None:
    """The label rule of a row's attack: "all_to_one", "all_to_all", or None where its configuration tells none."""
    return goal.rule((parsed(config).get("attack") or {}).get("config"))


def variant(config: str | None) -> str:
    """The static configuration of a row's defense as JSON."""
    return json.dumps((parsed(config).get("defense") or {}).get("config"), sort_keys=True)
