"""Compiled programs are kept between processes."""

import os
import sys
from pathlib import Path

import jax

from bdjax.data.cache import CACHE_DIR, cache_root, try_writing
from bdjax.errors import UserError

_FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep_compilations() -> None:
    """Keep compiled programs between calls, beside the cached data; JAX's own setting wins.

    Where that folder cannot be written, one line on stderr says so and names the variable; everything compiles anew then.
    """
    given = os.environ.get(_FOLDER) or jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given and "://" in given:  # an object store, which JAX itself reaches
        return
    try:
        folder = Path(given) if given else cache_root() / "compiled"
        try_writing(folder)
    except (OSError, UserError) as error:
        jax.config.update("jax_compilation_cache_dir", None)
        reason = error if isinstance(error, UserError) else f"cannot write {folder}: {error.strerror or error}"
        advice = "" if isinstance(error, UserError) else f"; set {_FOLDER if given else CACHE_DIR} to a folder with room"
        print(f"bdjax: warning: compiled programs are not kept: {reason}{advice}", file=sys.stderr)
        return
    if not given:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
