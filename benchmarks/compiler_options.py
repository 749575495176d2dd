"""Options of the XLA compiler on a whole training step: the table behind ``bdjax/population/compiler_options.py``.

    python -m benchmarks.compiler_options --out benchmarks/results/compiler_options_cpu

One member's gradient step (forward, backward, SGD with momentum) compiled with each option, rounds interleaved, best of all.
"""

import argparse
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from bdjax.models import MODELS
from bdjax.train.optimisers import sgd
from bdjax.train.trainer import cross_entropy
from benchmarks.measure import NETWORKS, network, seconds, synthetic, write

YNN = "xla_cpu_experimental_ynn_fusion_type"
DOT, REDUCE, ELEMENTWISE, CONVOLUTION = (
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "ELTWISE", "INDIVIDUAL_CONVOLUTION")
)
OPTIONS: dict[str, dict[str, str | bool]] = {
    "default": {},
    "YNNPACK for reductions": {YNN: REDUCE},
    "YNNPACK for reductions and products": {YNN: f"{REDUCE},{DOT}"},
    "YNNPACK for reductions and convolutions": {YNN: f"{REDUCE},{CONVOLUTION}"},
    "YNNPACK for reductions and element-wise chains": {YNN: f"{REDUCE},{ELEMENTWISE}"},
    "YNNPACK for convolutions": {YNN: CONVOLUTION},
    "YNNPACK for reductions, vectors of 512 bits": {YNN: REDUCE, "xla_cpu_prefer_vector_width": "512"},
    "YNNPACK for reductions, fast math": {YNN: REDUCE, "xla_cpu_enable_fast_math": True},
    "YNNPACK for reductions, concurrent scheduler": {YNN: REDUCE, "xla_cpu_enable_concurrency_optimized_scheduler": True},
}


def main() -> None:
    """Measure every option on every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", type=network, default=list(NETWORKS))
    parser.add_argument("--lowering", default="mixed")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for one in args.networks:
        calls, first, best = {}, {}, {}
        for option, compiler_options in OPTIONS.items():
            call = _step(*one, args.lowering, compiler_options)
            try:
                first[option] = seconds(call, 0)[0]
            except jax.errors.JaxRuntimeError as error:
                rows.append({"network": str(one), "options": option, "failed": str(error).splitlines()[0][:80]})
                continue
            calls[option], best[option] = call, float("inf")
        for _ in range(args.rounds):
            for option, call in calls.items():
                best[option] = min(best[option], seconds(call, 0)[0])
        for option, took in best.items():
            ratio = best["default"] / took
            rows.append(
                {"network": str(one), "options": option, "img/s": one.batch / took, "vs default": ratio, "first s": first[option]}
            )
        write(
            args.out,
            f"python -m benchmarks.compiler_options {shlex.join(sys.argv[1:])}",
            rows,
            "Network is name:width:size:batch.",
        )


def _step(name: str, width: int, size: int, batch: int, lowering: str, compiler_options: dict[str, str | bool]):
    model = MODELS[name](synthetic(batch, batch, size).spec, width, lowering=lowering)
    variables = model.init(jax.random.key(0))
    optimiser = sgd(0.9, 5e-4)
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    labels = jnp.arange(batch, dtype=jnp.int32) % 10

    def loss(params, statistics):
        out = model.apply({"params": params, "batch_stats": statistics}, images, train=True, key=jax.random.key(2))
        return jnp.mean(cross_entropy(out.logits, labels)), out.variables["batch_stats"]

    def step(params, statistics, state):
        (_, statistics), slope = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        update, state = optimiser.update(slope, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -0.01 * u, update)), statistics, state

    compiled = jax.jit(step, compiler_options=compiler_options)
    state = optimiser.init(variables["params"])
    return lambda: compiled(variables["params"], variables["batch_stats"], state)


if __name__ == "__main__":
    main()
