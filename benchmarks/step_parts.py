"""Where the time of a training step goes: programs that each do one thing more, and their differences.

    python -m benchmarks.step_parts --out benchmarks/results/step_parts_cpu

A profiler's op times mislead where convolutions run beside each other on several threads; differences of whole programs do not.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bdjax.models import MODELS
from bdjax.population import Execution, adapt, compiler_options, default_execution, members, run
from bdjax.train.optimisers import sgd
from bdjax.train.trainer import cross_entropy
from benchmarks.measure import NETWORKS, badnets_on, network, seconds, synthetic, training_of, write


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", type=network, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="steps of the whole training program")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for one in args.networks:
        calls = _programs(*one, args.steps)
        best = dict.fromkeys(calls, float("inf"))
        for round_number in range(args.rounds + 1):
            for part, (call, steps) in calls.items():
                took = seconds(call, 0)[0] / steps
                if round_number:  # the first compiles
                    best[part] = min(best[part], took)
        whole, before, found = list(best.values())[-1], 0.0, []
        for part, took in best.items():
            found.append({"network": str(one), "part": part, "ms": 1e3 * (took - before), "share": (took - before) / whole})
            before = took
        rows += sorted(found, key=lambda row: -row["ms"])
        rows.append({"network": str(one), "part": "whole step", "ms": 1e3 * whole, "share": 1.0})
        notes = "Network is name:width:size:batch. A part is the difference of two programs, so small ones may come out negative."
        write(args.out, f"python -m benchmarks.step_parts {shlex.join(sys.argv[1:])}", rows, notes)


def _programs(name: str, width: int, size: int, batch: int, steps: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Programs, each with one thing more than the last, and the steps they take."""
    dataset = synthetic(batch * steps, batch, size)
    execution = default_execution(model=name)._replace(devices=1)
    model = adapt(MODELS[name](dataset.spec, width), execution)
    variables = model.init(jax.random.key(0))
    params, statistics = variables["params"], variables["batch_stats"]
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    labels = jnp.arange(batch, dtype=jnp.int32) % 10
    optimiser = sgd(0.9, 5e-4)
    momentum = optimiser.init(params)

    def loss(params: Any, images: Any) -> Any:
        out = model.apply({"params": params, "batch_stats": statistics}, images, train=True, key=jax.random.key(2))
        return jnp.mean(cross_entropy(out.logits, labels)), out.variables["batch_stats"]

    flat, form = jax.tree.flatten(params)
    kernels = [leaf.ndim == 4 for leaf in flat]

    def without_kernels(norms: list[Any], images: Any) -> Any:
        given = iter(norms)
        leaves = [leaf if kernel else next(given) for leaf, kernel in zip(flat, kernels, strict=True)]
        return loss(jax.tree.unflatten(form, leaves), images)

    norms = [leaf for leaf, kernel in zip(flat, kernels, strict=True) if not kernel]

    def step(params: Any, images: Any) -> Any:
        (_, new), slope = jax.value_and_grad(loss, has_aux=True)(params, images)
        update, new_momentum = optimiser.update(slope, momentum, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -0.01 * u, update)), new, new_momentum

    def looped(f: Callable[..., Any], argument: Any) -> tuple[Callable[[], Any], int]:
        """``steps`` trips in one loop; every trip needs all that the last computed, so nothing is moved out of it or left out."""

        def trip(last: Any, _: None) -> Any:
            found = f(argument, images * (1 + 0 * last))
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found)), None

        program = jax.jit(
            lambda: lax.scan(trip, jnp.float32(0), None, length=steps)[0], compiler_options=compiler_options.options()
        )
        return program, steps

    return {
        "forward": looped(lambda v, x: model.apply(v, x).logits, variables),
        "batch statistics, loss": looped(loss, params),
        "input gradients, norms backward": looped(jax.value_and_grad(without_kernels, has_aux=True), norms),
        "kernel gradients": looped(jax.value_and_grad(loss, has_aux=True), params),
        "optimiser": looped(step, params),
        "shuffle, gather, poison, crop, flip, guard": (_trained(dataset, model, execution, batch, steps), steps),
    }


def _trained(dataset: Any, model: Any, execution: Execution, batch: int, steps: int) -> Callable[[], Any]:
    attack, data = badnets_on(dataset, epochs=1, batch=batch)
    function = training_of(model, attack, batch * steps)
    stack, _ = members([0], [0.1], batch * steps)

    return lambda: run(function, stack, (data,), execution)


if __name__ == "__main__":
    main()
