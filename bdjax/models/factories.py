"""What the factory of a network takes: a data set, a width, and the static fields that ``Model.rebuild`` changes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bdjax.errors import UserError, unknown
from bdjax.types import Loop, Model

# The static fields of every network, and what they are where nobody says otherwise.
FIELDS: dict[str, Any] = {"norm_eps": 1e-5, "norm_momentum": 0.1, "dtype": None, "lowering": "native", "loop": Loop()}
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def problem_of(factory: Callable[..., Model]) -> str:
    """Return why a function cannot be a network's factory, with the remedy; empty if it can."""
    name, form = factory.__name__, f"def {factory.__name__}(spec, width=16, **how)"
    parameters = inspect.signature(factory).parameters
    named = [field for field, one in parameters.items() if one.kind in NAMED]
    if len(named) < 2 or named[1] != "width" or parameters["width"].default is inspect.Parameter.empty:
        given = ", ".join(parameters) or "nothing"
        return f"{name} takes {given}, and its second argument has to be a width with a default: {form}"
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return ""
    missing = [field for field in FIELDS if field not in named]
    return f"{name} takes no {', '.join(missing)}, which a run sets: {form}" if missing else ""


def complete(factory: Callable[..., Model], how: Mapping[str, Any]) -> dict[str, Any]:
    """Return the static fields of a network, those that are not in ``how`` with their defaults.

    Args:
      factory: of the network.
      how: what it was called with.

    Raises:
      UserError: a function that is no factory of networks, a field that it does not have, or one of its own that is not in
        ``how``, so that a network that is built again would lose it.
    """
    problem = problem_of(factory)
    if problem:
        raise UserError(problem)
    parameters = inspect.signature(factory).parameters
    own = [field for field, one in parameters.items() if one.kind in NAMED][2:]
    for field in how:
        if field not in own and field not in FIELDS:
            raise unknown(f"static field of {factory.__name__}", field, dict.fromkeys([*own, *FIELDS]))
    for field in own:
        if field not in how:
            raise UserError(
                f"{factory.__name__} takes {field} and does not hand it on, so that a network built again would lose it: "
                f"build(…, how={{**how, {field!r}: {field}}})"
            )
    return {**FIELDS, **how}
