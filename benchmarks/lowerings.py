"""GFLOP/s of every way to compute every convolution of the four architectures: the table behind the defaults.

    python -m benchmarks.lowerings --out benchmarks/results/lowerings_cpu

One row per shape, direction (output, input gradient, kernel gradient), members and candidate. Before it is timed, every candidate
is compared with the native convolution in float32 at the highest precision, member by member for the first and the last one; a
candidate that disagrees ends the run. The candidates of one shape, direction and members count take turns, round after round, and
the best round counts.
GFLOP/s = 2 x multiply-accumulates of the true convolution (taps on padding included), whatever a candidate computes; "of ceiling"
is relative to the best of a large matrix product in the same dtype, timed again before every shape. With one member "vmap" is the
same program as none and has no row. Shapes are taken kind by kind in turn, the most expensive first, so that a run cut short by
--minutes has the ones that matter. Unrolling 64 members takes many seconds to compile: on a CPU, where members scale almost
linearly, start with --most 8 --members 1 4 16.
"""

import argparse
import itertools
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.population import compiler_options
from bdjax.population.memory import device_memory
from bdjax.types import Array
from benchmarks.lowering_candidates import DIRECTIONS, TRIPS, Candidate, candidates, kernel_shape, over_members
from benchmarks.lowering_summary import summary
from benchmarks.measure import matmul_ceiling, write
from benchmarks.shapes import ARCHITECTURES, Shape, distinct

KINDS = ("dense", "pointwise", "depthwise")
SLOW_MEMBERS = 4  # on a CPU: beyond it, no loops and no grouped dense convolutions
ROUND_SECONDS = 2e-3  # a faster program is called several times per round
PATIENCE_SECONDS = 1.0  # a candidate that has taken this long gets no further round


def main() -> None:
    """Measure, shape by shape."""
    args = _arguments()
    start = time.perf_counter()
    command = f"python -m benchmarks.lowerings {shlex.join(sys.argv[1:])}"
    dtype = jnp.dtype(args.dtype)
    rows: list[dict[str, Any]] = []
    beaten: dict[tuple[str, str], set[str]] = defaultdict(set)
    ceiling, end = 0.0, ""
    first = (args.members[0], DIRECTIONS[0])
    for shape, members, direction in itertools.product(_in_order(args), args.members, DIRECTIONS):
        if time.perf_counter() - start > 60 * args.minutes:
            end = f" Cut short after {args.minutes:g} minutes."
            break
        if (members, direction) == first:
            ceiling = max(ceiling, matmul_ceiling(args.matmul, dtype, 3))
        out_of = beaten[shape.name, direction]
        found = compare(shape, direction, members, args.batch, dtype, args.only, args.rounds, frozenset(out_of))
        out_of |= _far_behind(found, args.prune)
        rows += found
        for row in rows:
            if "GFLOP/s" in row:
                row["of ceiling"] = row["GFLOP/s"] * 1e9 / ceiling
        _write(args, command, rows, ceiling, "")
        for row in found:
            print(row, flush=True)
    _write(args, command, rows, ceiling, end)


def _write(args: argparse.Namespace, command: str, rows: list[dict[str, Any]], ceiling: float, end: str) -> None:
    about = f"images {args.size}x{args.size}, batch {args.batch}, width factor {args.width_factor:g}, {args.dtype}, NHWC; "
    about += f"ceiling {ceiling / 1e9:.4g} GFLOP/s ({args.matmul}x{args.matmul} matrix product); best of {args.rounds} rounds."
    write(args.out, command, rows, f"{about}{end}\n\nAll rows: {args.out.name}.json.\n\n{summary(rows)}", table=False)


def _far_behind(rows: list[dict[str, Any]], factor: float) -> set[str]:
    """Candidates that took ``factor`` times as long as the fastest; 0 = none."""
    timed = [row for row in rows if "ms" in row]
    if not timed or not factor:
        return set()
    limit = factor * min(row["ms"] for row in timed)
    return {row["candidate"] for row in timed if row["ms"] > limit}


def compare(
    shape: Shape,
    direction: str,
    members: int,
    batch: int,
    dtype: Any,
    only: list[str] | None = None,
    rounds: int = 3,
    beaten: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Check and time every candidate of one shape, direction and members count.

    Args:
      shape: the convolution.
      direction: one of ``DIRECTIONS``.
      members: networks with kernels of their own.
      batch: images per member.
      dtype: float32 or bfloat16.
      only: names of candidates; None = all.
      rounds: how often each is timed; the best counts.
      beaten: names that were too far behind with fewer members to be tried again.

    Returns:
      A row per candidate: "ms", "GFLOP/s", "compile s" and "error" (largest deviation over largest value), or why it has none.

    Raises:
      ArithmeticError: a candidate disagrees with the native convolution.
    """
    rows, timed = [], {}
    data = _data(shape, direction, members, batch, dtype)
    wanted = _reference(shape, direction, batch, *data)
    for candidate in candidates(shape, direction, batch):
        if (candidate.how == "vmap" and members == 1) or (only and candidate.name not in only):
            continue
        row = {"shape": shape.name, "count": shape.count, "kind": shape.kind, "direction": direction, "members": members}
        row |= {"candidate": candidate.name, "contends": candidate.contends}
        rows.append(row)
        if candidate.name in beaten:
            row["not run"] = "far behind with fewer members"
            continue
        if reason := _skipped(candidate, shape, members, batch, dtype):
            row["not run"] = reason
            continue
        try:
            call, row["compile s"], result = _compiled(candidate, *_laid_out(data, direction, candidate.layout))
            row["error"] = _error(result, wanted, direction, candidate.layout)
            del result
            if not row["error"] < tolerance(dtype):
                where = f"{candidate.name}, {direction} of {shape.name}, {members} members"
                raise ArithmeticError(f"{where}: error {row['error']:.2g}")
            timed[candidate.name] = _Timed(call, TRIPS if candidate.how == "scan" else 1)
        except jax.errors.JaxRuntimeError as error:
            row["not run"] = f"failed: {str(error).splitlines()[0][:120]}"
    for _, one in itertools.product(range(rounds), timed.values()):
        one.round()
    for row in rows:
        if one := timed.get(row["candidate"]):
            row["ms"] = one.best * 1e3
            row["GFLOP/s"] = 2 * shape.macs * batch * members / one.best / 1e9
    return rows


def tolerance(dtype: Any) -> float:
    """Largest error of a correct candidate; accelerators multiply float32 in shorter formats by default."""
    return 0.05 if dtype == jnp.bfloat16 else 1e-4 if jax.default_backend() == "cpu" else 1e-2


class _Timed:
    """A compiled program and its best time per convolution pass."""

    def __init__(self, call: Callable[[], Array], passes: int) -> None:
        self.call, self.passes, self.best, self.spent, self.calls = call, passes, math.inf, 0.0, 1

    def round(self) -> None:
        if self.spent > PATIENCE_SECONDS:
            return
        in_turn = jax.default_backend() == "cpu"  # calls in flight would share a CPU's cores; an accelerator runs them in order
        start = time.perf_counter()
        for _ in range(self.calls):
            out = self.call()
            if in_turn:
                jax.block_until_ready(out)
        jax.block_until_ready(out)
        took = time.perf_counter() - start
        self.spent += took
        self.best = min(self.best, took / self.calls / self.passes)
        self.calls = min(max(math.ceil(ROUND_SECONDS / (self.best * self.passes)), 1), 100)


def _compiled(candidate: Candidate, a: Array, b: Array) -> tuple[Callable[[], Array], float, Array]:
    start = time.perf_counter()
    program = jax.jit(over_members(candidate), compiler_options=compiler_options.options()).lower(a, b).compile()
    took = time.perf_counter() - start
    return (lambda: program(a, b)), took, program(a, b)


def _data(shape: Shape, direction: str, members: int, batch: int, dtype: Any) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(0), 2)
    x = (members, batch, shape.size, shape.size, shape.channels_in)
    g = (members, batch, shape.output_size, shape.output_size, shape.channels_out)
    k = (members, *kernel_shape(shape))
    a, b = {"output": (x, k), "input gradient": (g, k), "kernel gradient": (x, g)}[direction]
    return jax.random.normal(keys[0], a, dtype), jax.random.normal(keys[1], b, dtype)


def _reference(shape: Shape, direction: str, batch: int, a: Array, b: Array) -> list[Array]:
    native = next(candidates(shape, direction, batch)).one
    with jax.default_matmul_precision("highest"):
        one = jax.jit(native)
        return [one(a[i].astype(jnp.float32), b[i].astype(jnp.float32)) for i in (0, -1)]


def _laid_out(data: tuple[Array, Array], direction: str, layout: str) -> tuple[Array, Array]:
    """The operands in a candidate's layout, moved outside the timing; members stay first."""
    if layout == "NHWC":
        return data
    image, kernel = (0, 1, 4, 2, 3), (0, 4, 3, 1, 2)
    return data[0].transpose(image), data[1].transpose(image if direction == "kernel gradient" else kernel)


def _error(result: Array, wanted: list[Array], direction: str, layout: str) -> float:
    errors = []
    for i, want in zip((0, -1), wanted, strict=True):
        got = result[i].astype(jnp.float32)
        if layout == "NCHW":
            got = got.transpose((2, 3, 1, 0) if direction == "kernel gradient" else (0, 2, 3, 1))
        errors.append(float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want))))
    return max(errors)


def _skipped(candidate: Candidate, shape: Shape, members: int, batch: int, dtype: Any) -> str | None:
    if jax.default_backend() == "cpu" and members > SLOW_MEMBERS:
        if candidate.how == "scan":
            return f"a loop: tried up to {SLOW_MEMBERS} members on a CPU"
        if candidate.name == "native, vmap" and shape.kind != "depthwise":
            return f"grouped: tried up to {SLOW_MEMBERS} members on a CPU"
    x = batch * shape.size**2 * shape.channels_in * dtype.itemsize
    y = batch * shape.output_size**2 * shape.channels_out * dtype.itemsize
    copies = shape.window**2 if "patches" in candidate.name else 1
    at_once = members if candidate.how == "vmap" else 2
    if 2 * members * (x + y) + copies * at_once * max(x, y) > device_memory():
        return "needs too much memory"
    return None


def _in_order(args: argparse.Namespace) -> list[Shape]:
    chosen = distinct(args.architectures, args.size, args.width_factor)
    if args.shapes:
        chosen = [shape for shape in chosen if any(part in shape.name for part in args.shapes)]
    chosen.sort(key=lambda shape: -shape.macs * shape.count)
    by_kind = ([shape for shape in chosen if shape.kind == kind][: args.most] for kind in args.kinds)
    turns: Iterator[Any] = itertools.chain.from_iterable(itertools.zip_longest(*by_kind))
    return [shape for shape in turns if shape]


def _arguments() -> argparse.Namespace:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--size", type=int, choices=(32, 64), default=32)
    parser.add_argument("--width-factor", type=float, default=0.25 if cpu else 1.0, help="1 = published widths; 1/4 on a CPU")
    parser.add_argument("--batch", type=int, default=32 if cpu else 128)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shapes", nargs="+", help="only shapes whose names contain one of these")
    parser.add_argument("--most", type=int, help="only so many shapes of each kind, the most expensive")
    parser.add_argument("--only", nargs="+", help="names of candidates")
    parser.add_argument("--matmul", type=int, default=2048 if cpu else 8192, help="side of the product that sets the ceiling")
    parser.add_argument("--rounds", type=int, default=4)
    prune = "leave out with more members what took this many times as long as the fastest; 0 = nothing"
    parser.add_argument("--prune", type=float, default=2.0 if cpu else 0.0, help=prune)
    parser.add_argument("--minutes", type=float, default=30.0, help="start no new comparison after this long")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.members = sorted(set(args.members))  # fewer members decide what is tried with more
    if not (chosen := _in_order(args)):
        parser.error(f"no shape of {args.architectures} at {args.size} px contains one of {args.shapes}")
    known = {c.name for shape in chosen for direction in DIRECTIONS for c in candidates(shape, direction, args.batch)}
    if unknown := set(args.only or ()) - known:
        parser.error(f"unknown candidates {sorted(unknown)}; these shapes have {sorted(known)}")
    return args


if __name__ == "__main__":
    main()
