"""Where batch-norm takes the moments of a batch about: the speed of a training step, and the error of its gradient.

    python -m benchmarks.norm_moments --out benchmarks/results/norm_moments_cpu

One member's gradient step (forward, backward, SGD with momentum) with each way to take the moments, rounds interleaved, median
and best of all: seconds of all cores together, which a busy machine changes little, and of the clock. And the median relative
error of the gradient in float32 against float64, over the network's parameters, where the running means lie up to --away from 0
and say nothing about the batch; the least of three seeds, for a ReLU whose input lies within rounding of 0 takes either side.
"""

import argparse
import contextlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.models import MODELS
from bdjax.nn import layers, normalisation
from bdjax.population import adapt, compiler_options, default_execution
from bdjax.train.optimisers import sgd
from bdjax.train.trainer import cross_entropy
from benchmarks.measure import NETWORKS, network, seconds, synthetic, write

WAYS = ("about the running mean", "about a part of the batch", "two passes")  # the second is bdjax's
AXES = (0, 1, 2)


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", type=network, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--away", type=float, default=5.0, help="largest distance of the running means from 0")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for one in args.networks:
        calls = {}
        for way in WAYS:
            with _taken(way):
                calls[way] = _step(*one)
                seconds(calls[way], 0)  # traces and compiles
        cores: dict[str, list[float]] = {way: [] for way in WAYS}
        clock: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, call in calls.items():
                start = time.process_time()
                clock[way].append(seconds(call, 0)[0])
                cores[way].append(time.process_time() - start)
        for way, took in cores.items():
            base = cores[WAYS[0]]
            errors = [gradient_error(one.name, one.width, one.size, 16, args.away, way, seed) for seed in range(3)]
            rows.append(
                {
                    "network": str(one),
                    "moments": way,
                    "core ms, best": 1e3 * min(took),
                    "core ms, median": 1e3 * statistics.median(took),
                    "clock ms, best": 1e3 * min(clock[way]),
                    "core ms, best to best": min(took) / min(base),
                    "core ms, median of ratios": statistics.median(a / b for a, b in zip(took, base, strict=True)),
                    "gradient error": min(errors),
                }
            )
        write(
            args.out,
            f"python -m benchmarks.norm_moments {shlex.join(sys.argv[1:])}",
            rows,
            f"Network is name:width:size:batch. Ratios are to '{WAYS[0]}'. Gradient errors: batch 16, running means uniform on "
            f"±{args.away:g}, least of three seeds.",
        )


@contextlib.contextmanager
def _taken(way: str) -> Iterator[None]:
    """While networks are traced here, norms take their moments another way; "about a part of the batch" is theirs."""
    if way == WAYS[1]:
        yield
        return
    about: list[Any] = [None]

    def moments(x: Any, weight: Any) -> Any:
        assert weight is None
        x = x.astype(normalisation.at_least_float32(x.dtype))
        if way == WAYS[2]:
            mean = jnp.mean(x, AXES)
            return mean, jnp.mean(jnp.square(x - normalisation.row(mean, x)), AXES)
        away = x - normalisation.row(about[0], x)
        mean = jnp.mean(away, AXES)
        return about[0] + mean, jnp.maximum(jnp.mean(jnp.square(away), AXES) - jnp.square(mean), 0)

    def batch_norm(x: Any, mask: Any, running: Any, *rest: Any) -> Any:
        about[0] = jax.lax.stop_gradient(running["mean"])
        return normalisation.batch_norm(x, mask, running, *rest)

    with mock.patch.object(normalisation, "_moments", moments), mock.patch.object(layers, "batch_norm", batch_norm):
        yield


def _step(name: str, width: int, size: int, batch: int) -> Callable[[], Any]:
    model = adapt(MODELS[name](synthetic(batch, batch, size).spec, width), default_execution(model=name)._replace(devices=1))
    variables = model.init(jax.random.key(0))
    optimiser = sgd(0.9, 5e-4)
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    labels = jnp.arange(batch, dtype=jnp.int32) % 10

    def step(params: Any, running: Any, state: Any) -> Any:
        (_, running), slope = jax.value_and_grad(_loss(model, images, labels), has_aux=True)(params, running)
        update, state = optimiser.update(slope, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -0.01 * u, update)), running, state

    compiled = jax.jit(step, compiler_options=compiler_options.options())
    state = optimiser.init(variables["params"])
    return lambda: compiled(variables["params"], variables["batch_stats"], state)


def _loss(model: Any, images: Any, labels: Any) -> Callable[[Any, Any], Any]:
    def loss(params: Any, running: Any) -> Any:
        out = model.apply({"params": params, "batch_stats": running}, images, train=True, key=jax.random.key(2))
        return jnp.mean(cross_entropy(out.logits, labels)), out.variables["batch_stats"]

    return loss


def gradient_error(name: str, width: int, size: int, batch: int, away: float, way: str = WAYS[1], seed: int = 0) -> float:
    """Median over the parameters of |g - g64| / |g64|, g the gradient in float32 and g64 in float64 of the same network.

    Args:
      name: of the network.
      width: of it.
      size: side of the images.
      batch: number of images.
      away: running means are uniform on ± this.
      way: of :data:`WAYS`.
      seed: of the images and the running statistics.
    """
    drop = {} if name in ("cnn", "preactresnet18") else {"drop": False}
    model = MODELS[name](synthetic(batch, batch, size).spec, width, lowering="native", **drop)
    draw = np.random.default_rng(seed)
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    running = jax.tree.map(lambda leaf: draw.uniform(-away, away, leaf.shape).astype(np.float32), variables["batch_stats"])
    images, labels = draw.random((batch, size, size, 3)).astype(np.float32), (np.arange(batch) % 10).astype(np.int32)

    def gradient(dtype: Any) -> list[Any]:
        params, means = jax.tree.map(lambda leaf: leaf.astype(dtype), (variables["params"], running))
        slope = jax.jit(jax.grad(_loss(model, images.astype(dtype), labels), has_aux=True))(params, means)[0]
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(slope)]

    with jax.enable_x64(True):
        want = gradient(np.float64)
    with _taken(way):
        found = gradient(np.float32)
    return float(np.median([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, want, strict=True)]))


if __name__ == "__main__":
    main()
