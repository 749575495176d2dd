"""How time, memory and compile time grow with members, devices, image size and evaluation batch.

    python -m benchmarks.scaling --out benchmarks/results/scaling_cpu

Trains BadNets members of one network for a few steps with the platform's default execution, and with all members in one vmapped
program beside it. On a CPU `--simulated` splits the machine into several devices: that shows that sharding costs nothing and
compiles no more, not that it is faster, for the cores stay the same.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bdjax.models import MODELS
from bdjax.population import Execution, adapt, default_execution, members, run, take
from bdjax.population.execute import compiled
from bdjax.population.memory import program_bytes
from bdjax.train.evaluate import evaluator
from benchmarks.measure import badnets_on, seconds, synthetic, training_of, write

AXES = ("members", "devices", "size", "evaluate")


def main() -> None:
    """Measure, axis by axis; every row is written as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="cnn")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--at-once", type=int, default=16, help="largest population that is put into one vmapped program")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--simulated", type=int, default=8, help="devices that a CPU is split into for the axis `devices`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if "devices" in args.axes:
        jax.config.update("jax_num_cpu_devices", args.simulated)  # has no effect on an accelerator
    rows: list[dict[str, Any]] = []

    def note(**row: Any) -> None:
        rows.append(row)
        write(args.out, f"python -m benchmarks.scaling {shlex.join(sys.argv[1:])}", rows)
        print(row, flush=True)

    default = default_execution(model=args.model)._replace(devices=1)
    together = default._replace(strategy="vmap", loop="scan", chunk=0)
    if "members" in args.axes:
        for count in args.members:
            note(axis="members", **_trained(args, default, count, args.size))
            if count <= args.at_once:
                note(axis="members", **_trained(args, together, count, args.size))
    if "size" in args.axes:
        for size in args.sizes:
            note(axis="size", **_trained(args, default, 4, size))
    if "devices" in args.axes:
        for devices in args.devices:
            if devices <= jax.local_device_count():
                note(axis="devices", **_trained(args, together._replace(devices=devices), 8, args.size))
    if "evaluate" in args.axes:
        for batch in args.batches:
            note(axis="evaluate", **_evaluated(args, default, 4, batch))


def _trained(args: argparse.Namespace, execution: Execution, count: int, size: int) -> dict[str, Any]:
    rows = args.batch * args.steps
    dataset = synthetic(rows, args.batch, size)
    attack, data = badnets_on(dataset, epochs=1, batch=args.batch)
    function = training_of(adapt(MODELS[args.model](dataset.spec, args.width), execution), attack, rows)
    stack, _ = members(range(count), [0.1], rows)

    row = _timed(lambda: run(function, stack, (data,), execution), count * rows, args.rounds)
    one_program = execution.loop == "scan" and execution.devices == 1
    at_once = 1 if execution.strategy == "sequential" else min(execution.chunk or count, count)
    memory = _bytes(function, take(stack, range(at_once)), data, execution) if one_program else None
    told = {"members": count, "size": size, "devices": execution.devices, "how": _name(execution)}
    return {**told, **row, "device MiB": None if memory is None else memory / 2**20}


def _evaluated(args: argparse.Namespace, execution: Execution, count: int, batch: int) -> dict[str, Any]:
    dataset = synthetic(args.batch, 2048, args.size)
    _, data = badnets_on(dataset, epochs=1, batch=args.batch)
    model = adapt(MODELS[args.model](dataset.spec, args.width), execution)
    evaluate = evaluator(model, batch=batch)
    variables = jax.vmap(model.init)(jax.random.split(jax.random.key(0), count))

    def function(one, data):
        return evaluate(one, data.test)

    row = _timed(lambda: run(function, variables, (data,), execution), count * 2 * 2048, args.rounds)
    return {"members": count, "size": args.size, "devices": 1, "how": _name(execution), "batch": batch, **row}


def _timed(call: Callable[[], Any], images: int, rounds: int) -> dict[str, float]:
    first, later = seconds(call, rounds)
    return {"img/s": images / min(later), "compile s": max(first - min(later), 0.0)}


def _bytes(function: Callable[..., Any], stack: Any, data: Any, execution: Execution) -> int:
    """What the program of the members that run at once needs: arguments, results and temporaries."""
    batched = execution.strategy != "sequential"
    if not batched:
        stack = take(stack, 0)
    return program_bytes(compiled(function, batched, 1, 1).lower(stack, data).compile())


def _name(execution: Execution) -> str:
    return f"{execution.strategy}, {execution.lowering}, {execution.loop}"


if __name__ == "__main__":
    main()
