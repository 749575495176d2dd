"""Initial parameters: noise for a whole network in two draws, cut into its kernels and scaled.

Every draw of its own costs the compiler as long as a layer does: for EfficientNet's 130 kernels together longer than its training
step (benchmarks/results/initial_cpu.md).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.types import Array, Float, Key

_STATISTICS = {"mean": 0.0, "var": 1.0}  # running ones, before any batch
_LAWS = "intermediates"  # the collection of variables that Flax's own `init` leaves out


class Law(NamedTuple):
    """How a parameter starts."""

    kind: str  # "normal": N(0, scale²) | "uniform": U(-scale, scale) | "constant": scale
    scale: float

    def draw(self, key: Key, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Return a parameter of this law alone, of that shape."""
        if self.kind == "constant":
            return jnp.full(shape, self.scale)
        return _NOISE[self.kind](key, shape) * self.scale


_NOISE: Mapping[str, Callable[..., Array]] = {
    "normal": jax.random.normal,
    "uniform": functools.partial(jax.random.uniform, minval=-1),
}
Rule = Callable[[tuple[int, ...]], Law]  # of a parameter's shape


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Note:
    """A law among the variables of a network: no array, so that shapes can be asked for without drawing."""

    law: Law


def uniform_fan_in(shape: tuple[int, ...]) -> Law:
    """Return U(-b, b), b = 1 / sqrt(fan in): PyTorch's default for convolutions and linear layers; kernels are f[… in out]."""
    return Law("uniform", 1 / math.sqrt(math.prod(shape[:-1])))


def he_fan_out(shape: tuple[int, ...]) -> Law:
    """Return N(0, 2 / (out kh kw)) for kernels f[kh kw in out], the fan-out without groups, as torchvision draws convolutions."""
    return Law("normal", math.sqrt(2 / (shape[0] * shape[1] * shape[3])))


def normal(deviation: float) -> Rule:
    """Return the rule N(0, deviation²), whatever the shape."""
    return lambda shape: Law("normal", deviation)


def constant(value: float) -> Rule:
    """Return the rule of one number everywhere."""
    return lambda shape: Law("constant", float(value))


def parameter(module: nn.Module, name: str, rule: Rule, shape: tuple[int, ...]) -> Float[Any, "..."]:
    """Return a parameter of a module as the variables hold it (they may be NumPy's); called in its compact method.

    Networks start by :class:`Drawer`. The module's own ``init`` draws by the same laws and gives other numbers: Flax hands every
    parameter a key of its own, and all parameters come from two keys here.

    Args:
      module: whose compact method is running.
      name: of the parameter in it.
      rule: how it starts.
      shape: its shape.
    """
    law, asked = rule(shape), module.is_mutable_collection(_LAWS)
    if asked:
        module.sow(_LAWS, name, _Note(law), init_fn=lambda: None, reduce_fn=lambda before, note: note)
    # Where only the shape is wanted, by the Drawer and by Flax at every pass over a parameter that exists, tracing a draw would
    # take longer than all the rest.
    drawn = module.is_initializing() and not asked
    return module.param(name, law.draw if drawn else lambda key, shape: jnp.zeros(shape), shape)


class Drawer:
    """Draws the variables of a network whose parameters are made by :func:`parameter`: ``draw(key) -> {"params", …}``.

    All parameters of one kind are cut out of one draw, in the order of their paths. Running statistics start at 0 and 1.

    Args:
      init: ``(key, mutable) -> variables``, the Flax module's ``init`` with its other arguments filled in; only shapes are asked
        of it.
    """

    def __init__(self, init: Callable[[Key, bool], Any]):
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
        """Return what a call would give, as shapes and dtypes."""
        return self._known[0]

    @functools.cached_property
    def _known(self) -> tuple[Any, dict[str, Law]]:
        """The variables as shapes, and {path: law} of the parameters."""
        shapes = dict(jax.eval_shape(lambda key: self._init(key, True), jax.random.key(0)))
        notes: dict[str, Any] = tree.flatten(shapes.pop(_LAWS))
        return shapes, {path: note.law for path, note in notes.items()}


def _drawn(key: Key, shapes: Mapping[str, Any], laws: Mapping[str, Law]) -> dict[str, Array]:
    """Return the parameters {path: f[…]} of one key: one draw of each kind, cut into pieces in the order of ``shapes``."""
    keys = jax.random.split(key)
    sizes = {kind: sum(leaf.size for path, leaf in shapes.items() if laws[path].kind == kind) for kind in _NOISE}
    noise = {kind: _NOISE[kind](one, (sizes[kind],)) for kind, one in zip(_NOISE, keys, strict=True)}
    used, found = dict.fromkeys(_NOISE, 0), {}
    for path, leaf in shapes.items():
        kind, scale = laws[path]
        if kind == "constant":
            found[path] = jnp.full(leaf.shape, scale)
            continue
        start = used[kind]
        used[kind] = start + leaf.size
        found[path] = noise[kind][start : start + leaf.size].reshape(leaf.shape) * scale
    return found
