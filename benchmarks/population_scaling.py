"""Images per second of training 1 … 16 members by every strategy and lowering, beside PyTorch's loop over the same networks.

    python -m benchmarks.population_scaling --out benchmarks/results/population_scaling_cpu

All rows of one members count are measured in turn, round after round, in one process; the best round counts. PyTorch (eager,
channels-last, one network after another) is left out where torch is not installed. "compile" is the first call less a later one.
"""

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path

import jax

from bdjax.models import MODELS
from bdjax.population import Execution, adapt, members, run
from benchmarks.measure import badnets_on, seconds, synthetic, training_of, write

EXECUTIONS = {
    "vmap, native, scan": Execution("vmap", "native", "scan"),
    "sequential, native, scan": Execution("sequential", "native", "scan"),
    "vmap, unrolled, scan": Execution("vmap", "unrolled", "scan"),
    "sequential, mixed, scan": Execution("sequential", "mixed", "scan"),
    "vmap, mixed, scan": Execution("vmap", "mixed", "scan"),
    "map in 4, mixed, scan": Execution("map", "mixed", "scan", chunk=4),
    "sequential, patches, scan": Execution("sequential", "patches", "scan"),
    "vmap, patches, scan": Execution("vmap", "patches", "scan"),
    "sequential, native, dispatch": Execution("sequential", "native", "dispatch"),
    "vmap, native, dispatch": Execution("vmap", "native", "dispatch"),
    "vmap, unrolled, dispatch": Execution("vmap", "unrolled", "dispatch"),
    "sequential, mixed, dispatch": Execution("sequential", "mixed", "dispatch"),
    "sequential, mixed, 3 steps a dispatch": Execution("sequential", "mixed", "dispatch", unroll=3),
    "vmap, mixed, dispatch": Execution("vmap", "mixed", "dispatch"),
    "unrolled, mixed, dispatch": Execution("unrolled", "mixed", "dispatch"),
}
# One step on a CPU, and up to 4 members: minutes otherwise.
SLOW = ("vmap, native, scan", "sequential, native, scan", "vmap, unrolled, scan", "vmap, native, dispatch")


def main() -> None:
    """Measure, members count by members count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="preactresnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--only", nargs="+", default=list(EXECUTIONS), help="names of executions")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch_rate = None
    if importlib.util.find_spec("torch"):
        from benchmarks.torch_reference import images_per_second

        torch_rate = images_per_second
    command = f"python -m benchmarks.population_scaling {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, object]] = []
    for count in args.members:
        timed = {}
        for name in args.only:
            slow = jax.default_backend() == "cpu" and name in SLOW
            if slow and count > 4:
                continue
            timed[name] = _prepared(args, EXECUTIONS[name], count, 1 if slow else args.steps)
        best = {name: float("inf") for name in timed}
        first, torch_best = {}, 0.0
        for round_number in range(args.rounds + 1):
            for name, (call, _) in timed.items():
                if name in SLOW and round_number > 1:
                    continue
                took = seconds(call, 0)[0]
                if round_number == 0:
                    first[name] = took
                else:
                    best[name] = min(best[name], took)
            if torch_rate and round_number:
                rate = torch_rate(args.model, args.width, args.size, args.batch, args.steps, count, repeats=1)
                torch_best = max(torch_best, rate)
        common = {"model": f"{args.model} width {args.width}", "members": count}
        for name, (_, images) in timed.items():
            rate = images / best[name]
            row = {**common, "how": name, "img/s": rate, "compile s": max(first[name] - best[name], 0.0)}
            rows.append({**row, "vs PyTorch": rate / torch_best if torch_best else None})
        if torch_best:
            rows.append(
                {**common, "how": "PyTorch eager, channels-last", "img/s": torch_best, "compile s": None, "vs PyTorch": 1.0}
            )
        write(args.out, command, rows, "Images per second over all members; higher is better.")
        for row in rows[-len(timed) - 1 :]:
            print(row, flush=True)


def _prepared(args: argparse.Namespace, execution: Execution, count: int, steps: int):
    dataset = synthetic(args.batch * steps, args.batch, args.size)
    attack, data = badnets_on(dataset, epochs=1, batch=args.batch)
    model = adapt(MODELS[args.model](dataset.spec, args.width), execution)
    function = training_of(model, attack, args.batch * steps)
    stack, _ = members(range(count), [0.1], args.batch * steps)

    return (lambda: run(function, stack, (data,), execution)), count * args.batch * steps


if __name__ == "__main__":
    main()
