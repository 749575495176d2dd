"""Which poison ratios an attack can carry out on a training set: as many rows as it needs, and at least one.

A ratio above 0 that poisons nothing would leave a model that nobody attacked under the name of an attacked one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks import slots
from bdjax.errors import UserError, first_line
from bdjax.train.trainer import poison_count
from bdjax.types import Attack


def idle(attack: Attack, name: str, ratio: float, rows: int) -> str | None:
    """Why a ratio above 0 poisons nothing, from the number of rows alone; None: it poisons something, or is 0.

    An attack that poisons inside the batch draws anew in every epoch: it poisons nothing where fewer than one image is expected
    to carry the trigger over the whole training.

    Args:
      attack: with the recipe it is trained with.
      name: of the attack, for the text.
      ratio: of all training rows.
      rows: of the training set.
    """
    if ratio <= 0:
        return None
    if attack.batch is None:
        if poison_count(ratio, rows):
            return None
        return (
            f"{name} poisons no row at ratio {ratio:g}: that is {ratio * rows:.2g} of {rows:,} training rows, which rounds to 0 "
            f"rows; one row is a ratio of {1 / rows:.2g}"
        )
    epochs = attack.recipe.epochs
    due = slots.expected(ratio, rows, attack.recipe.batch) * epochs
    if due >= 1:
        return None
    return (
        f"{name} poisons no row at ratio {ratio:g}: in {epochs} epochs of {rows:,} training rows {due:.2g} images are expected "
        f"to carry the trigger; one is expected from a ratio of {ratio / due:.2g} on"
    )


def why_not(attack: Attack, name: str, ratio: float, rows: int, chosen: int, possible: bool) -> str | None:
    """Why a member is infeasible, or None.

    Args:
      attack, name, ratio, rows: as of :func:`idle`.
      chosen: rows that ``attack.select`` marked.
      possible: what it said of them.
    """
    if not possible:
        return f"{name} cannot poison {poison_count(ratio, rows)} rows, {ratio:g} of the training rows"
    if ratio > 0 and attack.batch is None and not chosen and poison_count(ratio, rows):
        return f"{name} poisons no row at ratio {ratio:g}: its selection marks none of {rows:,} training rows"
    return idle(attack, name, ratio, rows)


def infeasible(attack: Attack, name: str, ratios: Sequence[float], labels: Any) -> list[str]:
    """Why members at these ratios would be infeasible, a text for each that would.

    Args:
      attack: not that of stored images, which selects nothing.
      name: of the attack.
      ratios: of all training rows.
      labels: i32[n] of the training set.

    Raises:
      UserError: the selection of somebody's own attack cannot be traced.
    """
    rows = len(labels)

    @jax.jit
    def select(labels: Any, count: Any) -> tuple[Any, Any]:
        poisoned, possible = attack.select(jax.random.key(0), labels, count)
        return jnp.sum(poisoned, dtype=jnp.int32), possible

    try:
        jax.eval_shape(select, jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32))
    except UserError:
        raise
    except Exception as error:  # somebody's own attack
        raise UserError(f"the selection of {name} cannot be traced: {first_line(error)}") from error
    device, found = jnp.asarray(np.asarray(labels), jnp.int32), []
    for ratio in ratios:
        chosen, possible = select(device, jnp.int32(poison_count(ratio, rows)))
        reason = why_not(attack, name, ratio, rows, int(chosen), bool(possible))
        if reason:
            found.append(reason)
    return found
