"""VGG's average pooling to 7x7 and the linear layer behind it, folded into one small layer that trains exactly alike.

Pooling a map with h < 7 to 7x7 only copies and averages: u = P z per channel, with P [49, h²] of full column rank. Of the weights
W [out, c, 49] the data see W P alone, 1/49 of them at h = 1 (a tensor of 411 MB). With M = PᵀP and Q = P M^(-1/2), whose columns
are orthonormal, the layer keeps the coordinates of W along Q:

    U = W Q,    y = U (M^(1/2) z) + b.

Q is an isometry, so nothing else has to change:

* dL/dU = (dL/dW) Q and decay λ U = (λ W) Q: SGD on U, with momentum, Nesterov, dampening, coupled or decoupled decay and any
  learning rates, gives the same logits at every step as SGD on W. So does every optimiser that commutes with rotations.
* dL/dW = (dL/dU) Qᵀ, so both gradients have the same norm: clipping by norm and sharpness-aware steps are exact too.
* W ~ N(0, s²) independently makes U ~ N(0, s²) independently.

Adam, AMSGrad and others that work entry by entry do not commute with rotations. At h = 1 every dL/dW is dL/dU / 7 in all 49
copies, so without coupled decay Adam on W at rate η equals Adam on U at rate 7 η with ε 7 times as large (all else alike);
decoupled decay ηλ then needs λ / 7. With coupled decay, or at h > 1, no setting on U equals Adam on W.
"""

import functools
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import Array, Float

GRID = 7  # positions of the pooled map in each direction
A = TypeVar("A", np.ndarray, Array)


@functools.lru_cache(maxsize=64)
def pool_matrix(h: int) -> Float[np.ndarray, "7 h"]:
    """Adaptive average pooling from h to 7 positions in one direction, in float64.

    Row i averages positions floor(i h / 7) … ceil((i + 1) h / 7) - 1, as PyTorch's ``adaptive_avg_pool2d`` does.

    Args:
      h: positions of the map, at least 1.

    Raises:
      UserError: no positions.
    """
    if h < 1:
        raise UserError(f"pooling needs a map of at least 1 position; given {h}")
    p = np.zeros((GRID, h))
    for i in range(GRID):
        start, stop = i * h // GRID, -(-(i + 1) * h // GRID)
        p[i, start:stop] = 1 / (stop - start)
    p.flags.writeable = False
    return p


@functools.lru_cache(maxsize=64)
def _factors(h: int) -> tuple[np.ndarray, np.ndarray]:
    """(q^(1/2) f64[h, h], p q^(-1/2) f64[7, h]) with q = pᵀp: one direction of M^(1/2) and of Q."""
    p = pool_matrix(h)
    values, vectors = np.linalg.eigh(p.T @ p)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    return root, p @ inverse


def _isometry(h: int) -> np.ndarray:
    """Q f64[49, h²] for h < 7; rows and columns count positions row by row."""
    one = _factors(h)[1]
    return np.kron(one, one)


def fold(weight: Float[A, "..."], h: int) -> Float[A, "out c _"]:
    """Return the coordinates U = W Q of full weights; for h >= 7 the weights themselves.

    The layer behind :func:`pool` holds them as ``kernel = U.transpose(2, 1, 0).reshape(-1, out)``.

    Args:
      weight: f[out, c, 49], the pooled positions row by row (PyTorch's [out, 49 c] reshaped).
      h: side of the map.

    Returns:
      f[out, c, min(h, 7)²], same dtype.

    Raises:
      UserError: weights of another shape.
    """
    if weight.ndim != 3 or weight.shape[-1] != GRID**2:
        raise UserError(f"fold needs weights [out, c, {GRID**2}]; given {list(weight.shape)}")
    pool_matrix(h)
    return weight if h >= GRID else weight @ _isometry(h).astype(weight.dtype)


def unfold(folded: Float[A, "..."], h: int) -> Float[A, "out c 49"]:
    """Full weights W = U Qᵀ with the same function; ``fold(unfold(U, h), h) = U``. For h >= 7 the weights themselves.

    What the data could not see of the original weights is 0 here: single entries of it are not recovered.

    Args:
      folded: f[out, c, min(h, 7)²].
      h: side of the map.

    Returns:
      Weights of the same dtype.

    Raises:
      UserError: weights of another shape.
    """
    side = min(h, GRID)
    if folded.ndim != 3 or folded.shape[-1] != side**2:
        raise UserError(f"unfold needs weights [out, c, {side**2}] for maps of side {h}; given {list(folded.shape)}")
    pool_matrix(h)
    return folded if h >= GRID else folded @ _isometry(h).T.astype(folded.dtype)


def pool(x: Float[Any, "b h w c"], *, folded: bool = True) -> Float[Array, "b _"]:
    """Average a map to 7x7 positions and flatten it: what VGG's first linear layer multiplies.

    Folded, it gives the coordinates M^(1/2) z instead of the pooled values P z, so that the layer's kernel, f[t c, out] with row
    t c_count + c for position t (row by row) and channel c, holds U instead of W.

    Args:
      x: square maps.
      folded: for h < 7; for larger maps both are the same.

    Returns:
      f[b, t c] with t = min(h, 7)² positions, 49 if not ``folded``; at least float32.

    Raises:
      UserError: maps that are not square.

    Source: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, with the
      pooling to 7x7 that torchvision adds.
    Differs: folded, the same function and the same training under SGD with weights N(0, s²) at the start in both. Adam and its
      kin differ, except at 1x1 with 7 times the rate and ε.
    """
    if x.ndim != 4 or x.shape[1] != x.shape[2]:
        raise UserError(f"pooling to 7x7 needs square maps [b h h c]; given {list(x.shape)}")
    h = x.shape[1]
    direction = _factors(h)[0] if folded and h < GRID else pool_matrix(h)
    x = x.astype(at_least_float32(x.dtype))
    if h != GRID:
        matrix = jnp.asarray(direction, x.dtype)
        x = jnp.einsum("sh,tw,bhwc->bstc", matrix, matrix, x)
    return x.reshape(x.shape[0], -1)
