"""How many multiplications a network takes, counted in its program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.types import Model

PASSES = 3  # of a training step: forward, gradient of the activations, gradient of the parameters


def forward_macs(model: Model, size: int) -> int:
    """Multiply-accumulates of one image's forward pass: those of convolutions and matrix products, padding included."""
    native = model.rebuild(lowering="native")
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(native.init, jax.random.key(0))
    return _macs(jax.make_jaxpr(lambda v, x: native.apply(v, x).logits)(variables, image).jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, kernel = equation.primitive.name, [v.aval.shape for v in equation.invars]
        if name == "conv_general_dilated":
            channels = equation.params["dimension_numbers"].rhs_spec[0]
            total += equation.outvars[0].aval.size * int(np.prod(kernel[1])) // kernel[1][channels]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += equation.outvars[0].aval.size * int(np.prod([kernel[0][i] for i in contracted]))
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        total += sum(_macs(p) for p in inner if hasattr(p, "eqns"))
    return total
