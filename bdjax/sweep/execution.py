"""Which execution a cell's populations run with: what the user set, on what was tuned, on the platform's default."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bdjax.population import Execution, Tuned, cached, resolve
from bdjax.types import Attack, Model


class Chosen(NamedTuple):
    """An execution and the tuning it comes from; None = the default of the platform, or what the user set."""

    execution: Execution
    tuned: Tuned | None = None


def training_batch(attack: Attack, rows: int) -> int:
    """Rows of a training step: the recipe's, or all there are."""
    return min(attack.recipe.batch, rows)


def chosen(
    model: Model,
    attack: Attack,
    rows: int,
    members: int,
    execution: Execution | Mapping[str, Any] | None,
    *,
    tuned: bool = True,
) -> Chosen:
    """The execution of a training cell and of the defenses that read it.

    Args:
      model, attack: built for the cell.
      rows: of the training set.
      members: that are trained.
      execution: a whole one is taken as it is; single fields replace those of what was tuned, or of the default.
      tuned: use what was tuned earlier for this model, batch and machine.

    Raises:
      UserError: it cannot run here.
    """
    if isinstance(execution, Execution) or not tuned:
        return Chosen(resolve(execution, model))
    return over(cached(model, training_batch(attack, rows), members=members), model, execution)


def over(found: Tuned | None, model: Model, fields: Mapping[str, Any] | None) -> Chosen:
    """Single fields on top of what was tuned, or of the model's default where nothing was."""
    if found is None:
        return Chosen(resolve(fields, model))
    return Chosen(resolve(found.execution._replace(**(fields or {})), model), found)


def origin(choice: Chosen) -> str:
    """Where an execution comes from, in words."""
    if choice.tuned is None:
        return "not tuned"
    kept = choice.execution == choice.tuned.execution
    return f"tuned on {choice.tuned.date}" + ("" if kept else ", fields set by hand")
