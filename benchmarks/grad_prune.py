"""What a round of Grad-Prune costs, side by side: gradients of all parameters or of kernels, all batches or those with rows.

    python -m benchmarks.grad_prune --out benchmarks/results/grad_prune_cpu

A round scores all filters by one backward pass over the training rows and judges the network on the validation rows, clean and
triggered: 3 N_tr + 2 N_va forward passes of an image. Each way does what the one before does, and one thing less:

* all parameters: gradients as a training step takes them; batches of 128 over all rows of the clean set, as they are laid out.
* kernels: gradients of the kernels alone, which are all that is scored.
* rows: only the batches that hold a row of their kind (validation rows are a tenth of the clean set).
* even: batches that the usual split fills without a rest.
* together: clean and triggered validation rows in one batch.

The results are compared first: another one is an error. Then all ways are measured in turn, round after round, and the best round
counts. "gain" is the first way's processor time over this one's: that of all threads, which other work on the machine disturbs
less than the time that passes.

Not among them: keeping the activations before the pruned layer from one round to the next. The filters that win lie mostly in the
first convolution, before which there is nothing to keep.
"""

import argparse
import functools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.data import clean_subset
from bdjax.defenses.grad_prune.passes import Plan, measurer, plan, scorer, sizes
from bdjax.models import MODELS
from bdjax.population.compiler_options import options
from bdjax.types import CleanSet, Model, Variables
from benchmarks.measure import NETWORKS, network, synthetic, write
from benchmarks.savings import best

BATCH = 128
WAYS = ("all parameters", "kernels", "rows", "even", "together")


def main() -> None:
    """Measure, case by case; every row is written as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=network, nargs="+", default=list(NETWORKS[:2]), help="the batch is not read")
    parser.add_argument("--spc", type=int, nargs="+", default=[2, 10, 100])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--lowering", default="mixed")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = f"python -m benchmarks.grad_prune {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for described in args.networks:
        data = synthetic(4000, 10, described.size)
        model = MODELS[described.name](data.spec, described.width, lowering=args.lowering)
        for spc in args.spc:
            index, role = clean_subset.draw(jax.random.key(0), jnp.asarray(data.train.labels), data.spec.classes, spc, True)
            images, labels = jnp.asarray(data.train.images)[index], jnp.asarray(data.train.labels)[index]
            clean = CleanSet(images, labels, role, jnp.int32(spc))
            for members in args.members:
                keys = jax.random.split(jax.random.key(1), members)
                variables = jax.jit(jax.vmap(model.init))(keys)
                ways = {
                    name: functools.partial(
                        jax.jit(jax.vmap(_round(model, name), in_axes=(0, None, None)), compiler_options=options()),
                        *(variables, clean, images.at[:, :4, :4].set(255)),
                    )
                    for name in WAYS
                }
                best(ways, 0, 1e-3)  # compares the results
                took = _measured(ways, args.rounds)
                for name, (busy, passed) in took.items():
                    row = {"network": f"{described.name}:{described.width}:{described.size}", "spc": spc, "members": members}
                    row |= {"way": name, "processor ms per member": 1e3 * busy / members, "ms per member": 1e3 * passed / members}
                    row |= {"gain": took[WAYS[0]][0] / busy}
                    rows.append(row)
                    print(row, flush=True)
                write(args.out, command, rows, "One round: time, lower is better; gain, higher.")


def _measured(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Processor seconds and seconds of the best round of each way, in turn."""
    took = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, way in ways.items():
            busy, passed = time.process_time(), time.perf_counter()
            jax.block_until_ready(way())
            now = time.process_time() - busy, time.perf_counter() - passed
            took[name] = min(took[name][0], now[0]), min(took[name][1], now[1])
    return took


def _round(model: Model, name: str) -> Callable[[Variables, CleanSet, jax.Array], Any]:
    """``f(variables, clean, triggered) -> (scores f[F], wrong i32[2], losses f[2])``, with all that the ways before save."""
    saves = WAYS.index(name)
    slopes, measure = scorer(model, first_in_train_mode=False), measurer(model)
    convs = tuple(f"{address}/kernel" for kind, address in model.arch.registered if kind == "conv")

    def batches(present: jax.Array, size: int) -> Plan:
        found = plan(jax.random.key(0), present, size, True)
        return found if saves >= 2 else found._replace(trips=jnp.int32(len(found.rows)))

    def run(variables: Variables, clean: CleanSet, triggered: jax.Array) -> Any:
        n = len(clean.labels)
        train, held = sizes(n, model.spec.classes, BATCH) if saves >= 3 else (BATCH, BATCH)
        paths = convs if saves >= 1 else tuple(tree.flatten(variables["params"]))
        slope, _ = slopes(jax.random.key(0), variables, paths, triggered, clean.labels, batches(clean.role == 1, train))
        # What is not scored is summed, so that nothing is left out behind the programmer's back.
        rest = sum(jnp.sum(slope[path]) for path in paths if path not in convs) if saves < 1 else jnp.float32(0)
        scores = jnp.concatenate([jnp.mean(jnp.abs(slope[path]), (0, 1, 2)) for path in convs])
        judged, sets = batches(clean.role == 2, held), (clean.images, triggered)
        if saves >= 4:
            wrong, loss = measure(variables, sets, clean.labels, judged)
        else:
            apart = [measure(variables, (images,), clean.labels, judged) for images in sets]
            wrong, loss = (jnp.concatenate(each) for each in zip(*apart, strict=True))
        return scores + 0 * rest, wrong, loss

    return run


if __name__ == "__main__":
    main()
