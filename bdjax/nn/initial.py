"""Initial parameters: noise for a whole network in two draws, cut into its kernels and scaled.

Every draw of its own costs the compiler as long as a layer does: for EfficientNet's 130 kernels together longer than its training
step (benchmarks/results/initial_cpu.md).
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.types import Array, Key

_STATISTICS = {"mean": 0.0, "var": 1.0}  # running ones, before any batch


class Law(NamedTuple):
    """How a parameter starts."""

    kind: str  # "normal": N(0, scale²) | "uniform": U(-scale, scale) | "constant": scale
    scale: float


Rule = Callable[[tuple[int, ...]], Law]  # of a parameter's shape
_laws: contextvars.ContextVar[dict[str, Law] | None] = contextvars.ContextVar("laws", default=None)


def uniform_fan_in(shape: tuple[int, ...]) -> Law:
    """U(-b, b) with b = 1 / sqrt(fan in), PyTorch's default for convolutions and linear layers; kernels are [… in, out]."""
    return Law("uniform", 1 / math.sqrt(math.prod(shape[:-1])))


def he_fan_out(shape: tuple[int, ...]) -> Law:
    """N(0, 2 / (out kh kw)) for kernels [kh kw in out], the fan-out counted without groups, as torchvision draws convolutions."""
    return Law("normal", math.sqrt(2 / (shape[0] * shape[1] * shape[3])))


def normal(deviation: float) -> Rule:
    """N(0, deviation²) whatever the shape."""
    return lambda shape: Law("normal", deviation)


def constant(value: float) -> Rule:
    """The same number everywhere."""
    return lambda shape: Law("constant", float(value))


def parameter(module: nn.Module, name: str, rule: Rule, shape: tuple[int, ...]) -> Array:
    """A parameter of a module. It is filled in by :func:`drawer`: by the module's own ``init`` it would be 0.

    Args:
      module: whose compact method is running.
      name: of the parameter in it.
      rule: how it starts.
      shape: its shape.
    """
    laws = _laws.get()
    if laws is not None:
        laws["/".join((*module.path, name))] = rule(shape)
    return module.param(name, lambda key: jnp.zeros(shape))


def drawer(init: Callable[[Key], Any]) -> "Drawer":
    """``init(key) -> {"params", "batch_stats"}`` of a network whose parameters are made by :func:`parameter`.

    Args:
      init: the Flax module's ``init`` with its other arguments filled in; only shapes are asked of it.
    """
    return Drawer(init)


class Drawer:
    """Draws a network's variables; see :func:`drawer`."""

    def __init__(self, init: Callable[[Key], Any]):
        self._init = init

    def __call__(self, key: Key) -> dict[str, Any]:
        shapes, laws = self._known
        leaves = {name: tree.flatten(collection) for name, collection in shapes.items()}
        values = {"params": _drawn(key, leaves["params"], laws)}
        if "batch_stats" in leaves:
            values["batch_stats"] = {
                path: jnp.full(leaf.shape, _STATISTICS[path.rpartition("/")[2]]) for path, leaf in leaves["batch_stats"].items()
            }
        return {name: tree.replace(shapes[name], values[name]) for name in shapes}

    def shapes(self) -> Any:
        """What a call would give, as shapes and dtypes."""
        return self._known[0]

    @functools.cached_property
    def _known(self) -> tuple[Any, dict[str, Law]]:
        with _recorded() as laws:
            shapes = jax.eval_shape(self._init, jax.random.key(0))
        return shapes, laws


def _drawn(key: Key, shapes: Mapping[str, Any], laws: Mapping[str, Law]) -> dict[str, Array]:
    sizes = dict.fromkeys(("normal", "uniform"), 0)
    for path, leaf in shapes.items():
        if laws[path].kind in sizes:
            sizes[laws[path].kind] += leaf.size
    keys = jax.random.split(key)
    noise = {
        "normal": jax.random.normal(keys[0], (sizes["normal"],)),
        "uniform": jax.random.uniform(keys[1], (sizes["uniform"],), minval=-1),
    }
    used, found = dict.fromkeys(sizes, 0), {}
    for path, leaf in shapes.items():
        kind, scale = laws[path]
        if kind == "constant":
            found[path] = jnp.full(leaf.shape, scale)
            continue
        start = used[kind]
        used[kind] = start + leaf.size
        found[path] = noise[kind][start : start + leaf.size].reshape(leaf.shape) * scale
    return found


@contextlib.contextmanager
def _recorded() -> Iterator[dict[str, Law]]:
    laws: dict[str, Law] = {}
    token = _laws.set(laws)
    try:
        yield laws
    finally:
        _laws.reset(token)
