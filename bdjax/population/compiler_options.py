"""Options of the XLA compiler that measured faster than its defaults, per platform."""

import functools
import sys

import jax

# On a CPU XLA hands operations to the YNNPACK library. For reductions that is faster than its own loops, for
# element-wise chains and convolutions slower: whole training steps gain a quarter to a third with reductions alone
# (benchmarks/results/compiler_options_cpu.md).
MEASURED: dict[str, dict[str, str]] = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}}


@functools.lru_cache(maxsize=8)
def options(platform: str | None = None) -> dict[str, str]:
    """Return the ``compiler_options`` of ``jax.jit`` for a platform ("cpu", "gpu", "tpu"; None = the one in use).

    An XLA that does not know an option gets none, and stderr says so once: results are the same, only slower.
    """
    platform = platform or jax.default_backend()
    wanted = MEASURED.get(platform, {})
    if wanted and platform == jax.default_backend():
        try:
            jax.jit(lambda: 0, compiler_options=wanted).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            print(f"bdjax: this XLA refuses {wanted}, going on without: {str(error).splitlines()[0]}", file=sys.stderr)
            return {}
    return wanted
