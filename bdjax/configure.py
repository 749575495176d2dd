"""Static configurations of methods: a profile's values, changed by what the user gave."""

import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bdjax.errors import UserError, choose, unknown

Config = TypeVar("Config", bound=tuple)
ADDED = "added"  # mark of a field that came after the first records, ``Annotated[kind, ADDED]``; see :func:`recorded`


def configure(presets: Mapping[str, Config], config: Config | Mapping[str, Any] | None, owner: str, profile: str) -> Config:
    """The configuration of a method: the preset of the profile, with the fields that the user gave.

    Args:
      presets: {profile: NamedTuple}; all of one class.
      config: None, fields by name, or a NamedTuple of the presets' class. A field that is None takes the profile's value, so a
        configuration that leaves the profile's switches alone never undoes them.
      owner: the method's name, for messages.
      profile: a key of ``presets``.

    Returns:
      A NamedTuple of the presets' class.

    Raises:
      UserError: an unknown profile or field, or a value of another type.
    """
    if not isinstance(presets, Mapping):
        alone = type(presets).__name__
        raise UserError(
            f"configure takes one configuration per profile, dict.fromkeys(PROFILES, {alone}()) with PROFILES of bdjax.types; "
            f"{owner} gives it {alone}() instead"
        )
    preset = presets[choose("profile", profile, presets)]
    if config is None:
        return preset
    kind = type(preset)
    if isinstance(config, kind):
        given: Mapping[str, Any] = config._asdict()  # type: ignore[attr-defined]
    elif isinstance(config, Mapping):
        given = config
    else:
        wanted, other = (f"{one.__module__}.{one.__name__}" for one in (kind, type(config)))
        raise UserError(f"the configuration of {owner} is a mapping {{field: value}} or a {wanted}; given a {other}")
    hints, values = typing.get_type_hints(kind), {}
    for field, value in given.items():
        if field not in hints:
            raise unknown(f"field of {owner}", field, hints)
        if value is not None:
            values[field] = _typed(value, hints[field], f"{owner}.{field}")
    return preset._replace(**values)  # type: ignore[attr-defined]


def recorded(config: Any) -> Any:
    """The configuration of a method as records and the hashes of cells hold it.

    Fields marked :data:`ADDED` are left out where they have their default, so that a record that was made before they existed
    keeps its hash. Everything else is in it, defaults too.

    Args:
      config: a NamedTuple; anything else is returned as it is.
    """
    if not hasattr(config, "_asdict"):
        return config
    try:
        hints = typing.get_type_hints(type(config), include_extras=True)
    except (NameError, TypeError):  # annotations of a user's class that Python cannot evaluate mark nothing
        hints = {}
    default = {name: config._field_defaults[name] for name, hint in hints.items() if ADDED in getattr(hint, "__metadata__", ())}
    return {name: value for name, value in config._asdict().items() if name not in default or value != default[name]}


def at_least(owner: str, config: Any, **bounds: int) -> None:
    """Check lower bounds of whole-number fields: ``at_least("ft", config, epochs=1)``.

    Raises:
      UserError: a field lies below its bound.
    """
    for field, least in bounds.items():
        if getattr(config, field) < least:
            raise UserError(f"{owner}.{field} must be at least {least}; given {getattr(config, field)}")


def of_ten_thousand(name: str, share: float, *, ends: bool) -> int:
    """``share`` as a whole number of 1 / 10,000, so that counts of rows are computed in integers.

    Args:
      name: the field's, for messages.
      share: in [0, 1].
      ends: whether 0 and 1 are allowed.

    Raises:
      UserError: it lies outside, or between two steps of 1e-4.
    """
    whole = round(share * 10_000)
    if not (0 <= whole <= 10_000 if ends else 0 < whole < 10_000) or abs(share * 10_000 - whole) > 1e-6:
        raise UserError(f"{name} must lie in {'[0, 1]' if ends else '(0, 1)'}, in steps of 1e-4; given {share}")
    return whole


def _typed(value: Any, hint: Any, name: str) -> Any:
    """``value`` as the plain Python type that the annotation asks for (one of a union's)."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if option is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            if value != value or value in (float("inf"), -float("inf")):
                raise UserError(f"{name} must be a finite number; given {value}")
            return float(value)
        if option is str and isinstance(value, str):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, (tuple, list)):
            return tuple(value)
    allowed = " or ".join(getattr(option, "__name__", str(option)) for option in options if option is not type(None))
    raise UserError(f"{name} takes {allowed}; given {value!r}")
