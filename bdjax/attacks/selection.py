"""Which rows are poisoned, and which label they get."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import configure
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, DataSpec, Key

Select = Callable[[Key, Array, Array], tuple[Array, Array]]
Relabel = Callable[[Array], Array]
LABELS = ("all_to_one", "all_to_all")


class Config(NamedTuple):
    """Static configuration shared by attacks that only choose their labels."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k


def labelled(spec: DataSpec, config: Config | Mapping[str, Any] | None, owner: str, profile: str) -> tuple[Config, Relabel]:
    """The checked configuration of such an attack and its label rule.

    Raises:
      UserError: an unknown field or profile, a target that is no class, or a target beside all_to_all, which has none.
    """
    resolved = configure(dict.fromkeys(PROFILES, Config()), config, owner, profile)
    choose(f"{owner}.labels", resolved.labels, LABELS)
    if not 0 <= resolved.target < spec.classes:
        raise UserError(f"{owner}.target must be a class of {spec.name}, 0 … {spec.classes - 1}; given {resolved.target}")
    if resolved.labels == "all_to_one":
        return resolved, all_to_one(resolved.target)
    if resolved.target != 0:
        raise UserError(f"{owner}.target has no meaning where labels is 'all_to_all'; given {resolved.target}")
    return resolved, all_to_all(spec.classes)


def any_class(key: Key, labels: Array, count: Array) -> tuple[Array, Array]:
    """Choose ``count`` of all rows, whatever their class: those that one random permutation ranks below ``count``.

    For one key a smaller count chooses a subset of what a larger one chooses. Rows of the target class are chosen like any other:
    they get the trigger and keep their label, so with all_to_one fewer than ``count`` labels change.

    Args:
      key: the key of the stream SELECT.
      labels: i32[n].
      count: i32[], rows to poison, round(ratio n); may be traced.

    Returns:
      (poisoned bool[n], feasible bool[]: there are that many rows).

    Source: J. Dunnett et al., "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation
      Strategies", arXiv 2411.11200, 2024: the ratio refers to all training rows.
    Differs: the permutation is drawn from a JAX key; :func:`ranked_by` takes the survey's own order instead.
    """
    return _below(jax.random.permutation(key, labels.shape[0]), count)


def ranked_by(order: np.ndarray) -> Select:
    """A selection in a fixed order, for runs that must poison given rows: ``attack._replace(select=ranked_by(order))``.

    Args:
      order: i[n], a permutation of the rows; the first ``count`` of them are poisoned, whatever the key.

    Raises:
      UserError: not a permutation.
    """
    order = np.asarray(order)
    if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(len(order))):
        raise UserError("the order of poisoned rows must hold every row number once")
    rank = np.argsort(order).astype(np.int32)

    def select(key: Key, labels: Array, count: Array) -> tuple[Array, Array]:
        if labels.shape[0] != len(rank):
            raise UserError(f"the order of poisoned rows names {len(rank)} rows; the training set has {labels.shape[0]}")
        return _below(jnp.asarray(rank), count)

    return select


def legacy_order(seed: int, rows: int) -> np.ndarray:
    """The order in which the survey's published code poisons rows: NumPy's legacy generator, i64[n] on the host."""
    return np.random.RandomState(seed).permutation(rows)


def _below(rank: Array, count: Array) -> tuple[Array, Array]:
    return rank < count, count <= rank.shape[0]


def all_to_one(target: int) -> Relabel:
    """Every label becomes ``target``: labels i32[b] -> i32[b]."""
    return lambda labels: jnp.full_like(labels, target)


def all_to_all(classes: int) -> Relabel:
    """Every label moves on by one class, the last to the first: labels i32[b] -> i32[b]."""
    return lambda labels: (labels + 1) % classes
