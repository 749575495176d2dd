"""What is given in the wrong place: a setting as a hyper-parameter, a defense as an attack, and the other way round."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bdjax.errors import SYNONYMS, UserError, quoted
from bdjax.types import Attack, Defense, Recipe


def named(kind: str, name: str) -> None:
    """Raise the error for a name that is of another kind, such as a defense that is given as an attack.

    Args:
      kind: "dataset", "model", "attack" or "defense", as the flag is called.
      name: what was given.
    """
    from bdjax.attacks.table import ATTACKS
    from bdjax.data import DATASETS
    from bdjax.defenses.table import DEFENSES
    from bdjax.models import MODELS

    tables: Mapping[str, Any] = {"dataset": DATASETS, "model": MODELS, "attack": ATTACKS, "defense": DEFENSES}
    other = next((one for one, table in tables.items() if name in table), None)
    if other is not None and name not in tables[kind]:
        titles = {"dataset": "a data set", "model": "a model", "attack": "an attack", "defense": "a defense"}
        raise UserError(f"{name!r} is {titles[other]}, not {titles[kind]}: {quoted(f'--{other}', name)}")


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
        meant = SYNONYMS.get(field, field)
        if isinstance(method, Defense) and meant in _fields(method.hyper):
            axis = quoted("--hyper", f"{name}.{meant}={_written(value)}")
            return UserError(f"{name}.{meant} is a population axis, not a setting: {axis}")
        if isinstance(method, Attack) and meant in Recipe._fields:
            recipe = quoted("--config", f"{name}.recipe.{meant}={_written(value)}")
            return UserError(f"{meant} is a field of the training, not of the attack {name}: {recipe}")
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
