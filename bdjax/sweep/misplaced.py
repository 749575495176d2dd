"""A setting that is given as a hyper-parameter, or the other way round: what to write instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bdjax.errors import UserError, quoted
from bdjax.types import Attack, Defense, Recipe


def setting(name: str, given: Mapping[str, Any], plain: Callable[[], Attack | Defense]) -> UserError | None:
    """Return the error for a setting of a method that belongs elsewhere; None where none does.

    Args:
      name: of the method.
      given: its settings, {field: value}.
      plain: builds it without any.
    """
    try:
        method = plain()
    except UserError:  # it cannot be built at all, which its own error says
        return None
    for field, value in given.items():
        if field in _fields(method.config):
            continue
        if isinstance(method, Defense) and field in _fields(method.hyper):
            axis = quoted("--hyper", f"{name}.{field}={_written(value)}")
            return UserError(f"{name}.{field} is a population axis, not a setting: {axis}")
        if isinstance(method, Attack) and field in Recipe._fields:
            recipe = quoted("--config", f"{name}.recipe.{field}={_written(value)}")
            return UserError(f"{name}.{field} is a field of the training, not of the attack: {recipe}")
    return None


def hyper(name: str, field: str, values: Sequence[Any], defense: Defense) -> UserError | None:
    """Return the error for a hyper-parameter of a defense that is a setting; None where it is none.

    Args:
      name: of the defense.
      field: what was taken for a hyper-parameter.
      values: given for it.
      defense: built.
    """
    if field not in _fields(defense.config):
        return None
    written = quoted("--config", f"{name}.{field}={_written(*values[:1])}")
    return UserError(f"{name}.{field} is a setting, one for all members, and no population axis: {written}")


def _fields(values: Any) -> tuple[str, ...]:
    return getattr(values, "_fields", ())


def _written(value: Any = "VALUE") -> str:
    """A value as flags take it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
