"""What an attack prepares in a loop on the host is kept while it runs, so that a killed preparation goes on there.

The two newest states are files beside the one of the finished assets (:mod:`bdjax.train.assets`), ``….npz.0`` and ``….npz.1``; a
damaged one counts as none, and the other is taken. They go when the assets are there.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.train.asset_files import load, save

EVERY = 30.0  # seconds between two states that are kept

_assets: ContextVar[Path | None] = ContextVar("assets", default=None)


@contextlib.contextmanager
def beside(assets: Path) -> Iterator[None]:
    """Keep what is prepared in the block beside the file that its assets will have; it goes at the end of the block."""
    token = _assets.set(assets)
    try:
        yield
    finally:
        _assets.reset(token)
    for path in _places(assets):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def rounds(advance: Callable[[Any, int], Any], state: Any, count: int) -> Any:
    """``advance(state, number)`` for the numbers 0 … ``count`` - 1, from the newest state that was kept.

    Args:
      advance: ``(state, number) -> state``, a compiled program.
      state: pytree of arrays with which the loop begins.
      count: rounds in all.

    Returns:
      The last state.
    """
    assets, first = _assets.get(), 0
    if assets is not None:
        first, state = _newest(assets, state)
    kept = time.monotonic()
    for number in range(first, count):
        state = jax.block_until_ready(advance(state, number))
        if assets is not None and time.monotonic() - kept >= EVERY and number + 1 < count:
            _keep(_places(assets)[number % 2], state, number + 1)
            kept = time.monotonic()
    return state


def _places(assets: Path) -> tuple[Path, Path]:
    return assets.with_name(f"{assets.name}.0"), assets.with_name(f"{assets.name}.1")


def _keep(path: Path, state: Any, rounds: int) -> None:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    try:
        save(path, {"rounds": np.int64(rounds), **leaves})
    except UserError as error:  # a full disk must not end the work: the next one may succeed
        print(f"bdjax: warning: what is being prepared is not kept: {error}", file=sys.stderr)


def _newest(assets: Path, state: Any) -> tuple[int, Any]:
    """(Rounds behind it, the state) of the newest file that is whole; (0, the state that is given) where there is none."""
    found = [arrays for path in _places(assets) if (arrays := load(path)) is not None]
    if not found:
        return 0, state
    newest = max(found, key=lambda arrays: int(arrays["rounds"]))
    leaves = [jnp.asarray(newest[str(i)]) for i in range(len(newest) - 1)]
    print(f"bdjax: going on with what was prepared before, from round {int(newest['rounds']) + 1}", file=sys.stderr)
    return int(newest["rounds"]), jax.tree.unflatten(jax.tree.structure(state), leaves)
