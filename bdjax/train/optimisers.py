"""How a gradient becomes a step: PyTorch's SGD, Adam, AMSGrad and AdamW as ``optax.GradientTransformation``s.

``rule.init(params)`` is the state before the first step; ``rule.update(gradient, state, params)`` returns ``(direction, state)``.
The direction is what a step subtracts once it is multiplied by the learning rate: ``params - lr * direction``. It has the sign of
optax's ``scale_by_*``, so that ``optax.chain(adam(), optax.scale(-lr))`` is a complete optax optimiser.

They are our own because optax's mix integer counters with floating arrays, which strict type promotion refuses, because its
AMSGrad is not PyTorch's, and because decays may be traced arrays here. Each docstring says where it differs from optax's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import tree
from bdjax.types import Array, ArrayTree, Float, Model

DECAYS, EPS = (0.9, 0.999), 1e-8  # PyTorch's defaults: (β1, β2) and ε of Adam

Optimiser = Callable[[Any], optax.GradientTransformation]
# (hyper) -> transformation. What the tuning loops take: hyper-parameters are traced, so that the rule is built where they are.


class SGDState(NamedTuple):
    """The state of :func:`sgd`."""

    buffer: ArrayTree  # like the parameters: the running sum of gradients


class AdamState(NamedTuple):
    """The state of :func:`adam` and :func:`adamw`."""

    count: Array  # type: ignore[assignment]  # i32[]: steps taken
    mean: ArrayTree  # like the parameters: running mean of the gradient
    square: ArrayTree  # like the parameters: running mean of its square


class AMSGradState(NamedTuple):
    """The state of :func:`amsgrad`."""

    count: Array  # type: ignore[assignment]  # i32[]: steps taken
    largest: ArrayTree  # like the parameters: the largest ``square`` so far
    mean: ArrayTree  # as in :class:`AdamState`
    square: ArrayTree


def sgd(momentum: float | Float[Any, ""], weight_decay: float | Float[Any, ""]) -> optax.GradientTransformation:
    """PyTorch's SGD: g + wd p, then buf <- mu buf + g, without dampening; the direction is buf.

    Weight decay acts on all parameters, those of norms and biases included.

    Args:
      momentum: mu.
      weight_decay: wd.

    Differs: from ``optax.sgd``, which has no weight decay and includes the learning rate. It is
    ``optax.chain(optax.add_decayed_weights(wd), optax.trace(mu))`` with decays that are brought to the parameters' precision.
    """
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def init(params: Any) -> SGDState:
        return SGDState(jax.tree.map(jnp.zeros_like, params))

    def update(gradient: Any, state: SGDState, params: Any = None) -> tuple[Any, SGDState]:
        mu, wd = _like(momentum, gradient), _like(weight_decay, gradient)
        if decays:
            gradient = jax.tree.map(lambda g, p: g + wd * p, gradient, params)
        buffer = jax.tree.map(lambda g, b: g + mu * b, gradient, state.buffer)
        return buffer, SGDState(buffer)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def adam(decays: tuple[float, float] = DECAYS, eps: float = EPS) -> optax.GradientTransformation:
    """Adam: the direction is m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε).

    m and v are the running means of the gradient and of its square, m <- β1 m + (1 - β1) g, v <- β2 v + (1 - β2) g².

    Args:
      decays: (β1, β2), each in (0, 1).
      eps: ε.

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    Differs: from ``optax.scale_by_adam`` in rounding alone: 1 - β^t is computed without cancellation, and in
      the precision of the parameters.
    """

    def update(gradient: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        new = _moments(gradient, state, decays)

        def step(m: Float[Array, "*s"], v: Float[Array, "*s"]) -> Float[Array, "*s"]:
            first, second = _warmed(new.count.astype(m.dtype), decays)
            return m / first / (jnp.sqrt(v / second) + eps)

        return jax.tree.map(step, new.mean, new.square), new

    return optax.GradientTransformation(_first_moments, update)  # type: ignore[arg-type]


def amsgrad(decays: tuple[float, float] = DECAYS, eps: float = EPS) -> optax.GradientTransformation:
    """Adam with the largest v so far in place of v: the direction is m / (1 - β1^t) / (sqrt(max v) / sqrt(1 - β2^t) + ε).

    It is what the survey's benchmark calls Adam in most of its methods.

    Args:
      decays: (β1, β2), each in (0, 1).
      eps: ε.

    Source: S. J. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, Algorithm 2, with PyTorch's
      correction of the bias.
    Differs: from ``optax.scale_by_amsgrad``, which takes the largest after the correction by 1 - β2^t, and so makes the first
      steps several times smaller. Here, as in PyTorch, it is the largest of the running means as they are.
    """

    def init(params: Any) -> AMSGradState:
        count, mean, square = _first_moments(params)
        return AMSGradState(count, jax.tree.map(jnp.zeros_like, params), mean, square)

    def update(gradient: Any, state: AMSGradState, params: Any = None) -> tuple[Any, AMSGradState]:
        new = _moments(gradient, state, decays)
        largest = jax.tree.map(jnp.maximum, state.largest, new.square)

        def step(m: Float[Array, "*s"], v: Float[Array, "*s"]) -> Float[Array, "*s"]:
            first, second = _warmed(new.count.astype(m.dtype), decays)
            return m / first / (jnp.sqrt(v) / jnp.sqrt(second) + eps)

        return jax.tree.map(step, new.mean, largest), AMSGradState(new.count, largest, new.mean, new.square)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def adamw(
    weight_decay: float | Float[Any, ""], decays: tuple[float, float] = DECAYS, eps: float = EPS
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay: the direction of :func:`adam` plus wd times the parameters.

    Args:
      weight_decay: wd.
      decays: (β1, β2), each in (0, 1).
      eps: ε.

    Source: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2, in PyTorch's form, whose
      decay is multiplied by the learning rate.
    Differs: from ``optax.adamw`` as :func:`adam` differs from ``optax.scale_by_adam``; the learning rate is left out.
    """
    rule = adam(decays, eps)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        direction, state = rule.update(gradient, state)
        wd = _like(weight_decay, direction)
        return jax.tree.map(lambda d, p: d + wd * p, direction, params), state

    return optax.GradientTransformation(rule.init, update)


def unfolded(rule: optax.GradientTransformation, model: Model) -> optax.GradientTransformation:
    """``rule``, :func:`adam` or :func:`amsgrad`, such that VGG's folded first linear layer is tuned as the published one is.

    That layer takes steps sqrt(copies) = 7/h times as long, with ε as many times larger: at 1x1 maps (32 pixels) exactly what the
    rule on the published layer, with 49 copies of each weight, does to the function; at larger maps its size, not its every
    direction (:mod:`bdjax.nn.folded_linear`). Other networks get ``rule`` itself.
    """
    factor = float(np.sqrt(model.arch.copies))
    if factor == 1:
        return rule
    kernel = f"{model.arch.heads[0]}/kernel"

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # A gradient divided by the factor gives the same step but for ε, which it makes larger.
        gradient = tree.map_at(lambda g: g / factor, gradient, (kernel,))
        direction, state = rule.update(gradient, state, params)
        return tree.map_at(lambda d: d * factor, direction, (kernel,)), state

    return optax.GradientTransformation(rule.init, update)


def fixed(rule: optax.GradientTransformation) -> Optimiser:
    """The optimiser that is ``rule`` whatever the hyper-parameters are."""
    return lambda hyper: rule


def from_hyper(hyper: Any) -> optax.GradientTransformation:
    """:func:`sgd` with ``hyper.momentum`` and ``hyper.weight_decay``, each f[]."""
    return sgd(hyper.momentum, hyper.weight_decay)


def _like(value: float | Float[Any, ""], params: Any) -> float | Float[Any, ""]:
    """A number as it is, an array in the precision of parameters."""
    return value.astype(jax.tree.leaves(params)[0].dtype) if hasattr(value, "astype") else value


def _first_moments(params: Any) -> AdamState:
    """The state of Adam before the first step."""
    mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return AdamState(jnp.int32(0), mean, square)


def _moments(gradient: Any, state: AdamState | AMSGradState, decays: tuple[float, float]) -> AdamState:
    """The count and the running means after this gradient."""
    first, second = decays
    mean = jax.tree.map(lambda m, g: first * m + (1 - first) * g, state.mean, gradient)
    square = jax.tree.map(lambda v, g: second * v + (1 - second) * jnp.square(g), state.square, gradient)
    return AdamState(state.count + 1, mean, square)


def _warmed(count: Float[Array, ""], decays: tuple[float, float]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """1 - β^t for both decays, without cancellation."""
    first, second = (-jnp.expm1(count * math.log(decay)) for decay in decays)
    return first, second


SGD: Optimiser = from_hyper
ADAM: Optimiser = fixed(adam())
PLAIN: Optimiser = fixed(optax.identity())  # the direction is the gradient itself
