"""VGG's first linear layer between PyTorch's full weights and our folded ones, bit for bit the same on every machine.

:mod:`bdjax.nn.folded_linear` keeps U = W Q of the weights W. What W holds beside U Qᵀ is invisible to the data, so an export puts
the *change* of U back into the imported weights, W + (U - W Q) Qᵀ: weights that nobody changed come out as they went in, and the
rest keeps what only the full weights know. Sums are element by element in a fixed order and in float64, not matrix products,
whose order differs between machines.
"""

import math

import numpy as np

from bdjax.errors import UserError
from bdjax.nn.folded_linear import GRID, unfold

_BLOCK = 64  # output rows at a time: keeps the float64 copies small
_TAPS = GRID**2


def fold_weight(weight: np.ndarray, rows: int) -> np.ndarray:
    """Return PyTorch's weight as our kernel.

    Args:
      weight: f32[out, 49 c], channel-major.
      rows: rows of our kernel, c times the positions of the map (49 c without folding).

    Returns:
      f32[rows, out]; row t c_count + c belongs to position t and channel c.
    """
    channels = weight.shape[1] // _TAPS
    q = _columns(rows, channels)
    if q is None:
        return np.ascontiguousarray(weight.reshape(-1, channels, _TAPS).transpose(2, 1, 0).reshape(rows, -1))
    kernel = np.empty((rows, weight.shape[0]), np.float32)
    for start in range(0, weight.shape[0], _BLOCK):
        block = weight[start : start + _BLOCK].reshape(-1, channels, _TAPS)
        kernel[:, start : start + _BLOCK] = _coordinates(block, q).transpose(0, 2, 1).reshape(rows, -1)
    return kernel


def unfold_weight(kernel: np.ndarray, channels: int, original: np.ndarray | None = None) -> np.ndarray:
    """Return our kernel as PyTorch's weight, with the same function.

    Args:
      kernel: f32[rows, out].
      channels: c.
      original: f32[out, 49 c], the weight it was imported from; where the kernel did not change, neither does this. None: what
        the data cannot see is 0.

    Returns:
      f32[out, 49 c].
    """
    rows, out = kernel.shape
    q = _columns(rows, channels)
    if q is None:
        return np.ascontiguousarray(kernel.reshape(_TAPS, channels, out).transpose(2, 1, 0).reshape(out, -1))
    weight = np.zeros((out, channels * _TAPS), np.float32) if original is None else np.array(original)
    folded = kernel.reshape(len(q), channels, out)
    for start in range(0, out, _BLOCK):
        block = weight[start : start + _BLOCK].reshape(-1, channels, _TAPS)
        change = folded[:, :, start : start + _BLOCK].transpose(0, 2, 1).astype(np.float64)
        if original is not None:
            change -= _coordinates(block, q).astype(np.float64)
        for s in range(_TAPS):
            delta = change[0] * q[0, s]
            for t in range(1, len(q)):
                delta += change[t] * q[t, s]
            # Adding 0 would turn -0.0 into 0.0.
            block[:, :, s] = np.where(delta == 0, block[:, :, s], (block[:, :, s] + delta).astype(np.float32))
    return weight


def _coordinates(block: np.ndarray, q: np.ndarray) -> np.ndarray:
    """f32[t, n, c] = sum_s block[n, c, s] q[t, s], summed over s in order."""
    taps = np.ascontiguousarray(block.transpose(2, 0, 1)).astype(np.float64)
    result = np.empty((len(q), *taps.shape[1:]), np.float32)
    for t, row in enumerate(q):
        total = taps[0] * row[0]
        for s in range(1, _TAPS):
            total += taps[s] * row[s]
        result[t] = total
    return result


def _columns(rows: int, channels: int) -> np.ndarray | None:
    """Qᵀ f64[t, 49], rounded to float32 so that the last bits of an eigendecomposition cannot show; None without folding."""
    positions = rows // channels
    side = math.isqrt(positions)
    if positions * channels != rows or side**2 != positions or side > GRID:
        raise UserError(f"a kernel of {rows} rows does not belong to square maps of {channels} channels")
    if side == GRID:
        return None
    return unfold(np.eye(positions)[None], side)[0].astype(np.float32).astype(np.float64)
