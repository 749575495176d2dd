"""The same work beside PyTorch, in one run: train backdoored models, fine-tune models on a few clean images.

    python -m benchmarks.against_pytorch --members 8 --out benchmarks/results/against_pytorch_cpu

"train": BadNets on 10 % of --batch x --steps rows, one epoch: gather, clean or stamped, crop and flip, forward, backward, SGD
with momentum and weight decay. "tune": the defense FT on --spc rows of each of 10 classes, --epochs epochs, from the drawing of
the rows to the tuned network; --eval-images adds "tune, evaluated", which then predicts that many test images, clean and
triggered.

PyTorch runs one model after another (eager, compiled), or deals the models out to single-threaded processes, one per core (on a
CPU). With --dtype bfloat16 it uses autocast, and bdjax bfloat16 activations; weights are float32 on both sides. Everybody is warm
before the clock starts; rounds go by turns through all contestants; the best round counts, "spread" is how much longer the worst
one took. The run stops if two sides do not process the same number of images; "MMAC/image" (millions of multiply-accumulates of
a forward pass) is counted by each side's own tools. Without torch, or without its CUDA part on a GPU, bdjax runs alone.
"""

import argparse
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS, PRECISIONS
from bdjax.population import Execution, default_execution
from bdjax.population.multiplications import forward_macs
from benchmarks.bdjax_contestants import CLASSES, network, ours
from benchmarks.measure import badnets_on, synthetic, write
from benchmarks.population_scaling import EXECUTIONS

VARIANTS = {
    "eager": "PyTorch eager, channels-last",
    "compiled": "PyTorch torch.compile, channels-last",
    "processes": "PyTorch eager, one process per core",
    "compiled processes": "PyTorch torch.compile, one process per core",
}


class Contestant(NamedTuple):
    """Somebody who can do the work."""

    how: str
    call: Callable[[], int]  # do it, wait for it, count the images that went through a network
    compile: float | None  # seconds, where they were spent beforehand; None: the first call tells


def main() -> None:
    """Measure, work by work and members count by members count."""
    args = parser().parse_args()
    if args.device != "auto":
        jax.config.update("jax_platforms", args.device)
    works = [*args.work, *(["tune, evaluated"] if "tune" in args.work and args.eval_images else [])]
    load = f"Load of the machine at the start: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores."
    print(load + " Threads that wait for each other suffer most from other work: measure on a quiet machine.", file=sys.stderr)
    command = f"python -m benchmarks.against_pytorch {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for work in works:
        runners, note = torch_side(args, work)
        for count in args.members:
            new = measured(args, work, count, runners)
            rows += new
            write(args.out, command, rows, f"Higher is better, but for seconds. {note} {load}")
            for row in new:
                print({k: v for k, v in row.items() if v is not None}, flush=True)
        for _, runner, _ in runners:
            getattr(runner, "close", lambda: None)()


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", nargs="+", choices=("train", "tune"), default=["train", "tune"])
    made.add_argument("--model", choices=sorted(MODELS), default="preactresnet18")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--size", type=int, default=32)
    made.add_argument("--batch", type=int, default=64, help="rows per step of training")
    made.add_argument("--steps", type=int, default=6, help="of training")
    made.add_argument("--epochs", type=int, default=20, help="of fine-tuning")
    made.add_argument("--spc", type=int, default=10, help="clean rows per class")
    made.add_argument("--eval-images", type=int, default=0)
    made.add_argument("--members", type=int, nargs="+", default=[1, 8])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--dtype", choices=tuple(PRECISIONS), default="float32")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--executions", nargs="*", choices=tuple(EXECUTIONS), default=[], help="besides the default one")
    made.add_argument("--variants", nargs="*", choices=tuple(VARIANTS), default=list(VARIANTS), help="of PyTorch")
    made.add_argument("--compile-mode", default="default", help="of torch.compile")
    made.add_argument("--out", type=Path, required=True)
    return made


def measured(args: argparse.Namespace, work: str, count: int, runners: list[tuple[str, Any, float | None]]) -> list[dict]:
    """Rows of one work and one members count.

    Raises:
      RuntimeError: two contestants processed different numbers of images.
    """
    failed: dict[str, str] = {how: runner for how, runner, _ in runners if isinstance(runner, str)}
    contestants, macs = [], {}
    default = default_execution(model=args.model)
    for name, execution in [("default", default), *((name, EXECUTIONS[name]) for name in args.executions)]:
        how = "bdjax " + (name if name != "default" else f"default ({_described(default)})")
        contestants.append(Contestant(how, ours(args, work, count, execution), None))
        macs[how] = forward_macs(network(args), args.size)
    for how, runner, compile_seconds in runners:
        if how not in failed:
            contestants.append(Contestant(how, lambda runner=runner: runner.run(range(count)), compile_seconds))
            macs[how] = torch_macs(args, work)
    times: dict[str, list[float]] = {c.how: [] for c in contestants}
    images: dict[str, int] = {}
    for turn in range(args.rounds + 1):  # the first is the warm-up; then a new one begins each round
        for contestant in contestants[turn % len(contestants) :] + contestants[: turn % len(contestants)]:
            if contestant.how in failed:
                continue
            try:
                start = time.perf_counter()
                images[contestant.how] = contestant.call()
                times[contestant.how].append(time.perf_counter() - start)
            except RuntimeError as error:  # out of memory, say: a row, not the end (JaxRuntimeError is one)
                failed[contestant.how] = _short(error)
    if len(set(images.values())) > 1:
        raise RuntimeError(f"not the same work: images processed: {images}")
    best = {how: min(took[1:]) for how, took in times.items() if how not in failed}
    theirs = min((best[how] for how, _, _ in runners if how in best), default=None)
    common = {"work": work, "network": f"{args.model} width {args.width}, {args.size} px, {args.dtype}", "members": count}
    rows = []
    for contestant in contestants:
        how = contestant.how
        if how not in best:
            continue
        took = times[how]
        compile_seconds = contestant.compile if not how.startswith("bdjax") else max(took[0] - best[how], 0.0)
        rows.append(
            {
                **common,
                "how": how,
                "img/s": images[how] / best[how] if work == "train" else None,
                "experiments/min": 60 * count / best[how] if work != "train" else None,
                "vs PyTorch eager": best[VARIANTS["eager"]] / best[how] if VARIANTS["eager"] in best else None,
                "vs best PyTorch": theirs / best[how] if theirs else None,
                "seconds": best[how],
                "spread": max(took[1:]) / best[how] - 1,
                "compile s": compile_seconds,
                "images": images[how],
                "MMAC/image": macs[how] / 1e6,
            }
        )
    return rows + [{**common, "how": how, "failed": reason} for how, reason in failed.items()]


def torch_side(args: argparse.Namespace, work: str) -> tuple[list[tuple[str, Any, float | None]], str]:
    """PyTorch's share, warm: [(how, runner or why there is none, compile seconds or None)] and a note for the table."""
    if not importlib.util.find_spec("torch"):
        return [], "PyTorch is not installed here: bdjax alone."
    import torch

    cores, platform = len(os.sched_getaffinity(0)), jax.default_backend()
    about = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads."
    if platform != "cpu" and not torch.cuda.is_available():
        return [], f"{about} It sees no CUDA device: bdjax alone."
    from benchmarks.torch_contestants import Processes, Runner
    from benchmarks.torch_reference import NETWORKS

    if args.model not in NETWORKS:
        return [], f"{about} No reference network for {args.model}: bdjax alone."
    job, result = torch_job(args, work), []
    for variant in args.variants:
        how, compiled = VARIANTS[variant], variant.startswith("compiled")
        if "processes" in variant and platform != "cpu":
            continue
        runner: Any = None
        try:
            if "processes" in variant:
                runner = Processes(job, cores, compiled, args.compile_mode)
            else:
                runner = Runner(job, compiled, args.compile_mode)
            first, later = (_seconds(lambda runner=runner: runner.run(range(cores))) for _ in range(2))
            result.append((how, runner, max(first - later, 0.0) if compiled else None))
        except Exception as error:  # the compiler raises what it likes; why there is no runner becomes a row
            getattr(runner, "close", lambda: None)()
            result.append((how, _short(error), None))
    return result, about


def torch_job(args: argparse.Namespace, work: str) -> Any:
    """The work as PyTorch is told it, with our recipe's settings."""
    from benchmarks.torch_contestants import Job
    from benchmarks.torch_reference import Sgd

    spec = synthetic(1, 1, args.size, CLASSES).spec
    if work == "train":
        recipe = badnets_on(synthetic(1, 1, args.size, CLASSES), epochs=1, batch=args.batch)[0].recipe
        rows, batch, epochs, sgd = args.batch * args.steps, args.batch, 1, recipe
    else:
        defense = DEFENSES["ft"](network(args), {"epochs": args.epochs})
        rows, batch, epochs, sgd = args.spc, defense.config.batch, args.epochs, defense.hyper
    sgd = Sgd(float(sgd.lr), float(sgd.momentum), float(sgd.weight_decay))
    facts = (args.model, args.width, args.size, CLASSES, spec.mean, spec.std)
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    return Job(work, *facts, batch, rows, epochs, args.eval_images, args.dtype, device, sgd)


def torch_macs(args: argparse.Namespace, work: str) -> int:
    """Multiply-accumulates of one image's forward pass, as PyTorch counts them."""
    from benchmarks.torch_contestants import forward_macs as count

    return count(torch_job(args, work))


def _described(execution: Execution) -> str:
    chunk = f", chunks of {execution.chunk}" if execution.chunk else ""
    devices = f", {execution.devices} devices" if execution.devices > 1 else ""
    return f"{execution.strategy}, {execution.lowering}, {execution.loop}{chunk}{devices}"


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]


if __name__ == "__main__":
    main()
