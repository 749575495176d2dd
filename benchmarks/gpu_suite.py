"""The standing suite for an accelerator: training, evaluation and defense throughput, with utilisation.

    python -m benchmarks.gpu_suite --out benchmarks/results/gpu_suite_h200

Imports jax, flax, optax and numpy only. Every finished row is written at once, so a run that is cut short keeps what it measured.
Utilisation (MFU) = 6 x forward multiply-accumulates x images/s over the measured FLOP/s of a large matrix product in the same
dtype.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS, by_name
from bdjax.population import Execution, adapt, members, run, size
from bdjax.train.evaluate import evaluator
from bdjax.train.experiment import Subject, attack_member, defend_member
from benchmarks.measure import attacked_by, badnets_on, forward_macs, matmul_ceiling, seconds, synthetic, training_of, write

LOWERINGS = ("unrolled", "native", "patches", "mixed")


def main() -> None:
    """Measure, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="preactresnet18")
    parser.add_argument("--width", type=int, help="channels of the first stage; default: the network's own")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--lowerings", nargs="+", choices=LOWERINGS, default=list(LOWERINGS))
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matrix product that sets the ceiling")
    parser.add_argument("--spc", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.0, help="start no new measurement after this long")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    suite = Suite(args)
    suite.ceilings()
    for dtype in args.dtypes:
        for count in args.members:
            for lowering in args.lowerings:
                suite.attempt("train", dtype, lowering, count, suite.train)
            suite.attempt("evaluate", dtype, args.lowerings[0], count, suite.evaluate)
    for name in ATTACKS:
        for count in args.members:
            suite.attempt(
                f"attack {name}", args.dtypes[0], args.lowerings[0], count, lambda *a, name=name: suite.attacked(name, *a)
            )
    for name in DEFENSES:
        for count in args.members:
            suite.attempt(
                f"defense {name}", args.dtypes[0], args.lowerings[0], count, lambda *a, name=name: suite.defend(name, *a)
            )


class Suite:
    """Rows as they are measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows, self.start = args, [], time.perf_counter()
        self.command = f"python -m benchmarks.gpu_suite {shlex.join(sys.argv[1:])}"
        self.dataset = synthetic(args.batch * args.steps, 2048)
        self.attack, self.data = badnets_on(self.dataset, epochs=1, batch=args.batch)
        self.network = by_name(args.model, self.dataset.spec, width=args.width)
        self.macs = forward_macs(self.network, self.dataset.spec.image_shape[0])
        self.ceiling: dict[str, float] = {}

    def note(self, **row: object) -> None:
        self.rows.append(row)
        write(self.args.out, self.command, self.rows)
        print(row, flush=True)

    def ceilings(self) -> None:
        for dtype in self.args.dtypes:
            self.ceiling[dtype] = matmul_ceiling(self.args.matmul, jnp.dtype(dtype))
            self.note(what="matmul ceiling", dtype=dtype, **{"TFLOP/s": self.ceiling[dtype] / 1e12})

    def attempt(self, what, dtype, lowering, count, measure) -> None:
        """One measurement; a failure (out of memory, say) is a row, not the end."""
        about = {"what": what, "dtype": dtype, "lowering": lowering, "members": count}
        if time.perf_counter() - self.start > 60 * self.args.minutes:
            print("skipped for time:", about, flush=True)
            return
        try:
            self.note(**about, **measure(dtype, lowering, count))
        except jax.errors.JaxRuntimeError as error:
            self.note(**about, failed=str(error).splitlines()[0][:160])

    def model(self, dtype: str, lowering: str):
        execution = Execution("vmap", lowering, "scan")
        network = self.network.rebuild(dtype=jnp.bfloat16 if dtype == "bfloat16" else None)
        return adapt(network, execution), execution

    def train(self, dtype: str, lowering: str, count: int) -> dict[str, float]:
        model, execution = self.model(dtype, lowering)
        rows = self.args.batch * self.args.steps
        function = training_of(model, self.attack, rows)
        stack, _ = members(range(count), [0.1], rows)

        first, later = seconds(lambda: run(function, stack, (self.data,), execution), 3)
        rate = count * rows / min(later)
        return {"img/s": rate, "MFU": 6 * self.macs * rate / self.ceiling[dtype], "first call s": first}

    def attacked(self, name: str, dtype: str, lowering: str, count: int) -> dict[str, float]:
        model, execution = self.model(dtype, lowering)
        attack, data, assets = attacked_by(name, self.dataset, epochs=1, batch=self.args.batch)
        rows = len(self.dataset.train.labels)
        stack, _ = members(range(count), [0.1], rows)
        stack = stack._replace(assets=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), assets))
        function = training_of(model, attack, rows)
        first, later = seconds(lambda: run(function, stack, (data,), execution), 3)
        return {"img/s": count * rows / min(later), "first call s": first}

    def evaluate(self, dtype: str, lowering: str, count: int) -> dict[str, float]:
        model, execution = self.model(dtype, lowering)
        evaluate = evaluator(model, batch=1024)
        variables = jax.vmap(model.init)(jax.random.split(jax.random.key(0), count))

        def function(one, data):
            return evaluate(one, data.test)

        first, later = seconds(lambda: run(function, variables, (self.data,), execution), 3)
        return {"img/s": count * 2 * len(self.dataset.test.labels) / min(later), "first call s": first}

    def defend(self, name: str, dtype: str, lowering: str, count: int) -> dict[str, float]:
        model, execution = self.model(dtype, lowering)
        rows = self.args.batch * self.args.steps
        defense = DEFENSES[name](model)
        stack, _ = members(range(count), [0.1], rows, spc=self.args.spc, hyper=defense.hyper)
        trained, _ = run(attack_member(model, self.attack, rows), stack, (self.data,), execution)
        subjects = Subject(stack, trained.variables, trained.trigger)
        function = defend_member(model, self.attack, defense, self.args.spc)
        first, later = seconds(lambda: run(function, subjects, (self.data,), execution), 1)
        return {"experiments/min": 60 * size(stack) / min(later), "first call s": first}


if __name__ == "__main__":
    main()
