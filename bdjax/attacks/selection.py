"""Which rows are poisoned, and which label they get."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.share import share
from bdjax.configure import configure
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, Bool, DataSpec, Int, Key

Select = Callable[[Key, Int[Array, " n"], Int[Array, ""]], tuple[Bool[Array, " n"], Bool[Array, ""]]]
Relabel = Callable[[Int[Array, " b"]], Int[Array, " b"]]
LABELS = ("all_to_one", "all_to_all")
WITHIN = ("all", "class")


class Config(NamedTuple):
    """Static configuration shared by attacks that only choose their labels."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k


def labelled(
    spec: DataSpec, config: Any, owner: str, profile: str, presets: Mapping[str, Any] | None = None
) -> tuple[Any, Relabel]:
    """Return the checked configuration of an attack and its label rule.

    Args:
      spec: data set facts.
      config: None, fields by name, or a NamedTuple of the presets' class.
      owner: the attack's name, for messages.
      profile: a key of ``presets``.
      presets: {profile: NamedTuple with a field ``target`` and, for attacks that can do without one, ``labels``}; None = those of
        :class:`Config`.

    Raises:
      UserError: an unknown field or profile, a target that is no class, or a target beside all_to_all, which has none.
    """
    resolved = configure(presets or dict.fromkeys(PROFILES, Config()), config, owner, profile)
    labels = choose(f"{owner}.labels", getattr(resolved, "labels", LABELS[0]), LABELS)
    if not 0 <= resolved.target < spec.classes:
        raise UserError(f"{owner}.target must be a class of {spec.name}, 0 … {spec.classes - 1}; given {resolved.target}")
    if labels == "all_to_one":
        return resolved, all_to_one(resolved.target)
    if resolved.target != 0:
        raise UserError(f"{owner}.target has no meaning where labels is 'all_to_all'; given {resolved.target}")
    return resolved, all_to_all(spec.classes)


def any_class(key: Key, labels: Int[Array, " n"], count: Int[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
    """Choose ``count`` of all rows, whatever their class: those that one random permutation ranks below ``count``.

    For one key a smaller count chooses a subset of what a larger one chooses. Rows of the target class are chosen like any other:
    they get the trigger and keep their label, so with all_to_one fewer than ``count`` labels change.

    Args:
      key: the key of the stream SELECT.
      labels: of all rows.
      count: rows to poison, round(ratio n); may be traced.

    Returns:
      (which rows are poisoned, whether it is feasible: there are that many rows).

    Source: K. Dunnett et al., "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation
      Strategies", arXiv 2411.11200, 2024: the ratio refers to all training rows.
    Differs: the permutation is drawn from a JAX key; :func:`ranked_by` takes the survey's own order instead.
    """
    return _below(jax.random.permutation(key, labels.shape[0]), count)


def one_class(target: int, within: str = "all") -> Select:
    """Return a clean-label selection: only rows of the target class, those that one random permutation ranks first among them.

    With rank_i the place of row i among the n_t rows of class t, poisoned_i = (y_i = t and rank_i < k). For one key a smaller
    count chooses a subset of what a larger one chooses.

    Args:
      target: the class t; its rows keep their label.
      within: what the poison ratio is a share of. "all": of all n rows, k = count. "class": of the class, k = round(count n_t /
        n), half to even, exact in integers.

    Returns:
      ``select(key, labels, count) -> (poisoned, feasible)``. Not feasible, and then every row of the class is
      marked: more rows asked for than the class has, as 1, 5 and 10 % of all rows of GTSRB and Tiny-ImageNet are.

    Raises:
      UserError: an unknown ``within``.

    Source: K. Dunnett et al., "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation
      Strategies", arXiv 2411.11200, 2024: the ratio of clean-label attacks refers to all training rows too.
    Differs: the survey's published code aborts where the class is too small; here this is data, so that a population of ratios
      runs in one program. Its permutation is of the class alone, from another generator: :func:`legacy_class_order` gives it.
      "class" is the older definition; because ``count`` is already round(ratio n), its k may differ by one from round(ratio n_t).
    """
    choose("within", within, WITHIN)

    def select(key: Key, labels: Int[Array, " n"], count: Int[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
        rows = labels.shape[0]
        order = jax.random.permutation(key, rows)
        inside = labels[order] == target
        rank = jnp.cumsum(inside, dtype=jnp.int32) - 1
        size = jnp.sum(inside, dtype=jnp.int32)
        wanted = count if within == "all" else share(count, size, rows)
        poisoned = jnp.zeros(rows, bool).at[order].set(inside & (rank < wanted), unique_indices=True)
        # A share of an empty class is no row, and no attack.
        return poisoned, (wanted <= size) & (count <= rows) & ((size > 0) | (count <= 0))

    return select


def ranked_by(order: np.ndarray, rows: int | None = None) -> Select:
    """Return a selection in a fixed order, for runs that must poison given rows: ``attack._replace(select=ranked_by(order))``.

    Args:
      order: i[k], different row numbers; the first ``count`` of them are poisoned, whatever the key.
      rows: number of training rows n; those that ``order`` does not name are never poisoned. None: it names them all.

    Returns:
      A selection that is feasible where ``count`` <= k.

    Raises:
      UserError: a row named twice or that does not exist, or not all rows named where ``rows`` is None.
    """
    order = np.asarray(order)
    total = len(order) if rows is None else rows
    if order.ndim != 1 or len(np.unique(order)) != len(order) or (len(order) and not 0 <= order.min() <= order.max() < total):
        named = "every row number once" if rows is None else f"row numbers below {rows}, none twice"
        raise UserError(f"the order of poisoned rows must hold {named}")
    rank = np.full(total, np.iinfo(np.int32).max, np.int32)
    rank[order] = np.arange(len(order))

    def select(key: Key, labels: Int[Array, " n"], count: Int[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
        if labels.shape[0] != total:
            raise UserError(f"the order of poisoned rows names {total} rows; the training set has {labels.shape[0]}")
        return jnp.asarray(rank) < count, count <= len(order)

    return select


def legacy_order(seed: int, rows: int) -> Int[np.ndarray, " n"]:
    """Return the order in which the survey's published code poisons rows: NumPy's legacy generator, on the host."""
    return np.random.RandomState(seed).permutation(rows)


def legacy_class_order(seed: int, labels: Int[np.ndarray, " n"], target: int) -> Int[np.ndarray, " n_t"]:
    """Return the order in which it poisons rows of one class: row numbers on the host, for ``ranked_by(order, rows)``.

    Args:
      seed: of the legacy generator.
      labels: of all rows.
      target: the class.
    """
    members = np.flatnonzero(np.asarray(labels) == target)
    return members[legacy_order(seed, len(members))]


def _below(rank: Int[Array, " n"], count: Int[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
    return rank < count, count <= rank.shape[0]


def all_to_one(target: int) -> Relabel:
    """Return the rule by which every label becomes ``target``."""
    return lambda labels: jnp.full_like(labels, target)


def all_to_all(classes: int) -> Relabel:
    """Return the rule by which every label moves on by one class, the last to the first."""
    return lambda labels: (labels + 1) % classes
