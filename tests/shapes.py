"""The shapes that annotations name, checked at every call while the tests run; other annotations are mypy's."""

import functools
import sys
import typing

import beartype
import jaxtyping

ROOMS = ("nn", "train", "attacks", "defenses", "metrics")

_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # where a float is meant, an int will do


def install():
    """Let modules of :data:`ROOMS` that are imported from now on check their calls."""
    # Under a name of its own: pytest makes the package "tests" anew where a file of a subfolder is run alone.
    sys.modules["bdjax_shapes"] = sys.modules[__name__]
    jaxtyping.install_import_hook([f"bdjax.{room}" for room in ROOMS], "bdjax_shapes.checked")


def checked(function):
    """Check the arguments and the result of a function, those whose annotation names a shape."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _names_a_shape(hint)}
    return _check(function) if function.__annotations__ else function


@functools.cache
def _names_a_shape(hint):
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_names_a_shape(part) for part in typing.get_args(hint) if not isinstance(part, list))
