"""Values as plain JSON, the one text of each, and their hashes: what cells, members and files are named by."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


def short_hash(value: Any) -> str:
    """Return 24 hexadecimal digits of :func:`json_digest`."""
    return json_digest(value)[:24]


def json_digest(value: Any) -> str:
    """Return the sha256 of canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def array_digest(arrays: Sequence[Any]) -> str:
    """Return the sha256 of the bytes of arrays, with their dtypes and shapes."""
    total = hashlib.sha256()
    for array in arrays:
        host = np.ascontiguousarray(array)
        total.update(f"{host.dtype}{host.shape}".encode())
        total.update(host.tobytes())
    return total.hexdigest()


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; non-finite numbers are null."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """Return a pytree of arrays, NamedTuples and scalars as plain JSON values; float32 numbers get their shortest decimal.

    Raises:
      TypeError: a value that JSON cannot hold.
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (frozenset, set)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (np.ndarray, jax.Array)):
        return [plain(item) for item in np.asarray(value)] if value.ndim else plain(np.asarray(value)[()])
    if isinstance(value, np.floating):
        return float(str(value)) if np.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (type, np.dtype)):
        return np.dtype(value).name
    raise TypeError(f"a record cannot hold {value!r}")
