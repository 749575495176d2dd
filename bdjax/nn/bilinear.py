"""Three bilinear maps that are each other's gradients: how a linear layer keeps reverse over reverse closed."""

from collections.abc import Callable
from typing import Any

import jax

from bdjax.types import Array

Bilinear = Callable[[Array, Array], Array]


def mutual_gradients(output: Bilinear, input_gradient: Bilinear, kernel_gradient: Bilinear) -> tuple[Any, Any, Any]:
    """Return the three maps with custom gradients built from the other two, so that a gradient of any order stays among them.

    Args:
      output: ``(x, kernel) -> y``, bilinear.
      input_gradient: ``(g, kernel) -> `` like x, its transpose in x: <g, output(x, k)> = <input_gradient(g, k), x>.
      kernel_gradient: ``(x, g) -> `` like kernel, its transpose in the kernel: the same number is <kernel_gradient(x, g), k>.

    Returns:
      The maps in the same order; forward mode (``jax.jvp``) is refused, as by every ``custom_vjp``.
    """
    out, dx, dk = (_differentiable(f) for f in (output, input_gradient, kernel_gradient))
    # <c, out(x, k)> = <dx(c, k), x> = <dk(x, c), k>: the cotangents of each map are the other two.
    out.defvjp(lambda x, k: (out(x, k), (x, k)), lambda r, c: (dx(c, r[1]), dk(r[0], c)))
    dx.defvjp(lambda g, k: (dx(g, k), (g, k)), lambda r, c: (out(c, r[1]), dk(c, r[0])))
    dk.defvjp(lambda x, g: (dk(x, g), (x, g)), lambda r, c: (dx(r[1], c), out(r[0], c)))
    return out, dx, dk


def _differentiable(f: Bilinear) -> Any:
    return jax.custom_vjp(lambda a, b: f(a, b))  # a plain function of two arguments, whatever `f` is
