"""Compile time of a network's initial parameters: in two draws, as the package makes them, and in one draw per parameter.

A compiled training program begins with them, so this is paid once per cell. Each form is compiled in a process that has compiled
nothing like it before; ``python -m benchmarks.initial --out initial``.
"""

import argparse
import shlex
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.models import MODELS
from benchmarks.measure import synthetic, write


def main() -> None:
    """Compile every network's initial parameters both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spec, rows = synthetic(16, 16).spec, []
    for name in args.models:
        init = MODELS[name](spec).init
        shapes = tree.flatten(jax.eval_shape(init, jax.random.key(0))["params"])
        drawn = [path for path in shapes if path.endswith("kernel")]
        ours, apart = _compiled(init), _compiled(lambda key, drawn=drawn, shapes=shapes: _one_by_one(key, drawn, shapes))
        rows.append(
            {"network": name, "kernels": len(drawn), "two draws s": ours, "one per kernel s": apart, "ratio": apart / ours}
        )
        command = f"python -m benchmarks.initial {shlex.join(sys.argv[1:])}"
        write(args.out, command, rows, "Seconds of tracing and compiling the initial parameters at full width.")


def _one_by_one(key: Any, drawn: list[str], shapes: dict[str, Any]) -> dict[str, Any]:
    keys = {path: jax.random.fold_in(key, zlib.crc32(path.encode())) for path in drawn}
    return {path: jax.random.normal(keys[path], shapes[path].shape) * jnp.float32(0.01) for path in drawn}


def _compiled(function: Any) -> float:
    start = time.perf_counter()
    jax.jit(function).lower(jax.random.key(0)).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
