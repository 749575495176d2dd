"""Compiled programs are kept between processes."""

import os

import jax

from bdjax.data.cache import cache_root


def keep_compilations() -> None:
    """Keep compiled programs between calls, beside the cached data; JAX's own setting wins."""
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not (os.environ.get("JAX_COMPILATION_CACHE_DIR") or told):
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
