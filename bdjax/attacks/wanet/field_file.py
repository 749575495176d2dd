"""A user's displacement field for WaNet: a NumPy file, or a PyTorch file as published codes keep it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.errors import UserError, first_line
from bdjax.types import Float

NAMES = ("field", "noise_grid")  # of the field in a file that holds several arrays


def read_field(field: str, path: Path, height: int, width: int) -> Float[np.ndarray, "2 h w"]:
    """Return the smooth field U of WaNet, as :func:`bdjax.attacks.wanet.wanet.draw_field` draws it.

    The file holds one array, or several of which one is called "field" or "noise_grid": .npy, .npz, or a PyTorch file (.pt, .pth,
    .tar), of which nothing is executed. Published codes keep ``noise_grid`` [1 h w 2] and ``identity_grid`` beside the network.

    Args:
      field: of a configuration, for messages.
      path: the file.
      height: of the images.
      width: of the images.

    Returns:
      Displacements to the right, then down, before it is multiplied with the strength.

    Raises:
      UserError: the file cannot be read, holds no such array, or one of another shape or with numbers that are not finite.
    """
    array = np.asarray(_array(field, path))
    flat = array[0] if array.ndim == 4 and len(array) == 1 else array
    if flat.shape == (height, width, 2) and flat.shape != (2, height, width):
        flat = flat.transpose(2, 0, 1)
    if flat.shape != (2, height, width) or array.dtype.kind not in "fiu":
        raise UserError(
            f"{field}: {path} holds {array.dtype}{list(array.shape)}; wanted numbers of shape [2, {height}, {width}] (to the "
            f"right, then down), or [1, {height}, {width}, 2] as a noise_grid is kept"
        )
    if not np.isfinite(flat).all():
        raise UserError(f"{field}: {path} holds numbers that are not finite")
    return np.ascontiguousarray(flat, np.float32)


def _array(field: str, path: Path) -> Any:
    """Return the one array of a file that may be the field."""
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            content: Any = np.load(path, allow_pickle=False)
            content = dict(content) if path.suffix.lower() == ".npz" else content
        except Exception as error:  # whatever a damaged file makes NumPy's readers do
            raise UserError(f"{field}: {path} cannot be read as a NumPy file of numbers: {first_line(error)}") from None
    else:
        from bdjax.data.pickles.torch import load_pickled

        try:
            content = load_pickled(path)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None
    if not isinstance(content, Mapping):
        return _numbers(content)
    chosen = [name for name in NAMES if name in content] or list(content)
    if len(chosen) != 1:
        names = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise UserError(f"{field}: {path} holds {names}; the field is an array called {' or '.join(NAMES)}")
    return _numbers(content[chosen[0]])


def _numbers(value: Any) -> Any:
    """Return a tensor, or what stands for a tensor or an array of a pickled file, as a NumPy array; anything else as it is."""
    if hasattr(value, "detach"):
        return value.detach().float().cpu().numpy()
    return value.array() if callable(getattr(value, "array", None)) else getattr(value, "value", value)
