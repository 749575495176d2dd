"""Adam and AMSGrad for the fine-tuning loop; AMSGrad is what the benchmark calls Adam in most of its methods."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bdjax import tree
from bdjax.train import adam
from bdjax.train.descent import Optimiser
from bdjax.types import Model

DECAYS, EPS = (0.9, 0.999), 1e-8


def amsgrad(model: Model) -> Optimiser:
    """:func:`bdjax.train.adam.amsgrad_direction` on all parameters of ``model``, without weight decay.

    VGG's folded first linear layer takes steps sqrt(copies) = 7/h times as long, with ε as many times larger: at 1x1 maps (32
    pixels) exactly what AMSGrad on the published layer, with 49 copies of each weight, does to the function; at larger maps its
    size, not its every direction (:mod:`bdjax.nn.folded_linear`).
    """
    return _unfolded(model, adam.amsgrad_start, adam.amsgrad_direction)


def plain_adam(model: Model) -> Optimiser:
    """:func:`bdjax.train.adam.direction` on all parameters of ``model``, with VGG's folded layer as in :func:`amsgrad`."""
    return _unfolded(model, adam.start, adam.direction)


def _unfolded(model: Model, start: Callable[..., Any], direction: Callable[..., Any]) -> Optimiser:
    kernel, factor = f"{model.arch.heads[0]}/kernel", float(np.sqrt(model.arch.copies))

    def step(hyper: Any, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        if factor == 1:
            found: tuple[Any, Any] = direction(gradient, state, DECAYS, EPS)
            return found
        # A gradient divided by the factor gives the same step but for ε, which it makes larger.
        gradient = tree.map_at(lambda g: g / factor, gradient, (kernel,))
        moved, state = direction(gradient, state, DECAYS, EPS)
        return tree.map_at(lambda s: s * factor, moved, (kernel,)), state

    return Optimiser(lambda hyper, params: start(params), step)
