"""Files of nested dicts of arrays with their hash: what attacks prepare, finished or not."""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bdjax import tree
from bdjax.data.atomic import OWNER_ONLY, replace_file
from bdjax.data.cache import written_in


def save(path: Path, assets: Any) -> Any:
    """Write nested dicts of arrays, with their hash, under a temporary name first; returns them as host arrays."""
    flat = {name: np.asarray(leaf) for name, leaf in tree.flatten(assets).items()}
    with written_in(path.parent):
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **flat)
        body = buffer.getvalue()
        replace_file(path, hashlib.sha256(body).digest() + body, mode=OWNER_ONLY)
    return tree.unflatten(flat)


def load(path: Path) -> Any:
    """The nested dicts of host arrays that :func:`save` wrote; None where there is no such file.

    A damaged file counts as none, with a warning on stderr.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        print(f"bdjax: warning: the cache file {path} is damaged; what it held is prepared again", file=sys.stderr)
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return tree.unflatten({name: arrays[name] for name in arrays.files})
