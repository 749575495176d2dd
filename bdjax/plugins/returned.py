"""Shapes that a user's own functions return, compared with those they have to return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import PluginError, UserError
from bdjax.plugins.usable import described


def returns(here: str, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], wanted: Any) -> None:
    """Trace a function and compare what it returns.

    Args:
      here: file and line of the function.
      name: of the function.
      function: what is traced.
      arguments: arrays or shapes.
      wanted: the shapes that it has to return; of a tuple the parts are compared, their own forms too.

    Raises:
      PluginError: it fails, or returns something else.
    """
    found = shapes_of(here, name, function, *arguments)
    if isinstance(wanted, tuple) and not hasattr(wanted, "_fields"):
        if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
            given = f"{len(found)} values" if isinstance(found, (tuple, list)) else _text_of_tree(found)
            raise PluginError(here, f"{name} returns {given}; it has to return {len(wanted)} values")
    else:
        wanted, found = (wanted,), (found,)
    for ours, theirs in zip(wanted, found, strict=True):
        wrong = difference(ours, theirs)
        if not wrong and str(jax.tree.structure(ours)) != str(jax.tree.structure(theirs)):
            wrong = f"returns {described(theirs)} where {described(ours)} went in"
        if wrong:
            raise PluginError(here, f"{name} {wrong}")


def shapes_of(here: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns, as shapes; an error outside the user's own code means that it returned no arrays."""
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:  # not arrays
        message = " ".join(str(error).split())
        raise PluginError(here, f"{name} returns something that holds no arrays: {message[:200]}") from error


def difference(wanted: Any, found: Any) -> str:
    """Return how two trees of shapes differ, for a message; empty where they do not."""
    ours, theirs = _flat(wanted), _flat(found)
    for path, leaf in ours.items():
        at = f" at {path}" if path else ""
        if path not in theirs:
            return f"returns {_text_of_tree(found)}; {_text(leaf)}{at} is missing"
        if (leaf.shape, leaf.dtype) != (theirs[path].shape, theirs[path].dtype):
            return f"returns {_text(theirs[path])}{at}; it has to be {_text(leaf)}"
    extra = [path for path in theirs if path not in ours]
    return f"returns {_text_of_tree(found)}, with {extra[0]} that does not belong there" if extra else ""


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _text_of_tree(tree: Any) -> str:
    return _text(tree) if hasattr(tree, "shape") else described(tree)


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def leaf_of(leaf: Any) -> Any:
    """Return the shape and dtype of an array or a number; numbers of Python are float32."""
    return shape_of(np.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.float32)


def shape_of(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a shape and a dtype in place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)
