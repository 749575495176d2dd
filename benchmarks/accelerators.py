"""What an accelerator's own compiler expects each form of a population to cost, on any x86-64 Linux machine, without the device.

    pip install libtpu
    python -m benchmarks.accelerators --out benchmarks/results/accelerators_v5e --kind v5e

Every row is one program: a training in batches of 128 rows, an evaluation of 512, or a defense on clean samples of 10 classes.
"Mcycles" is the compiler's own estimate of the cycles of one step, per member: the figure it schedules by, good for comparing
forms on one kind of device, and no measured time. "beside one" sets it against one network after another; "share of peak" is
what the convolutions and matrix products need of it on the matrix units alone. The columns after it say where the cycles go.
Finished rows are kept and not compiled again; each is compiled in a process of its own, which is ended after ``--limit`` seconds.

With ``--chips`` the program is sharded over so many devices of a larger topology, and "collectives" counts the instructions in
which they wait for each other: there must be none.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from bdjax.models import by_name
from bdjax.population import Execution, estimated, targets
from bdjax.population.chips import TPUS
from bdjax.population.memory import program_bytes
from bdjax.population.multiplications import PASSES, forward_macs
from benchmarks.accelerator_programs import WORKS, Program, for_members, program
from benchmarks.measure import Network, network, synthetic, write

NETWORKS = (
    "cnn:16:32:128",
    "preactresnet18:16:32:128",
    "preactresnet18:64:32:128",
    "mobilenet_v3_large:16:32:128",
    "vgg19_bn:64:32:128",
    "efficientnet_b3:40:32:128",
)
ALONE = Execution("sequential", "native", "scan")
# What the last word of JAX's name of an instruction says of its kind, in the order of looking; the rest is "other".
KINDS = {
    "convolutions": ("conv_general_dilated", "dot_general"),
    "augmentation": ("crop_flip", "cond/branch", "gather", "poison"),
    "norms": ("/bn", "/norm", "batch_norm"),
    "optimiser": ("jit(_where)/select_n",),
    "moves": ("transpose", "copy", "reshape", "concatenate", "split", "slice", "stack", "squeeze"),
}


def main() -> None:
    """Compile what is asked for, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(TPUS), default="v5e")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="name:width:size:batch")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=["train"])
    parser.add_argument("--forms", nargs="+", default=["sequential/native", "vmap/native"], help="strategy/lowering")
    parser.add_argument("--members", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--spc", nargs="+", type=int, default=[2, 10], help="clean samples per class of a defense")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for one program")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(json.loads(args.one))))
        return
    command = f"python -m benchmarks.accelerators {shlex.join(sys.argv[1:])}"
    file = args.out.with_suffix(".json")
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for about in wanted(args):
        if not any(about.items() <= row.items() for row in rows):
            rows.append({**about, **_in_a_process(about, args.limit)})
            write(args.out, command, beside_one(rows), NOTES)
            print(rows[-1], flush=True)


NOTES = "All figures are estimates of the compiler, not measured times; see `benchmarks/accelerators.py` for the columns."


def wanted(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows to be made, those of one member first."""
    found = []
    for work in args.works:
        for form in args.forms:
            for count in [1] if form.startswith("sequential") else args.members:
                for spc in args.spc if work not in ("train", "evaluate") else [0]:
                    for name in args.networks:
                        about = {"kind": args.kind, "work": work, "spc": spc, "network": name, "form": form, "members": count}
                        found.append({**about, "dtype": args.dtype, "chips": args.chips})
    return found


def _in_a_process(about: dict[str, Any], limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.accelerators", "--out", os.devnull, "--one", json.dumps(about)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"compiles for more than {limit:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "RESOURCE_EXHAUSTED" in line or "Error" in line]
        return {"failed": (lines or done.stderr.splitlines())[-1][:160]}
    return json.loads(done.stdout.splitlines()[-1])


def measured(about: dict[str, Any]) -> dict[str, Any]:
    """Compile one program and read its cost."""
    strategy, lowering = about["form"].split("/")
    execution, net = Execution(strategy, lowering, "scan"), network(about["network"])
    net = net._replace(batch=512) if about["work"] == "evaluate" else net
    one = program(about["work"], net, execution, about["dtype"], about["spc"])
    function, shapes = for_members(one, execution, about["members"])
    start = time.perf_counter()
    compiled = _lowered(function, shapes, about).compile()
    took = time.perf_counter() - start
    cost, total, fixed = estimated.cost(compiled.as_text()), program_bytes(compiled), shared_bytes(about["work"], one)
    each = 1 if strategy == "sequential" else about["members"] // about["chips"]
    cycles = cost.step.cycles / each
    return {
        "Mcycles": cycles / 1e6,
        "share of peak": _matrix_cycles(about, net) / cycles,
        **{kind: part / each / 1e6 for kind, part in by_kind(cost.step).items()},
        "once Mcycles": cost.once / each / 1e6,
        "parts": len(cost.step.instructions),
        "fixed MB": fixed / 1e6,
        "MB/member": (total - fixed) / each / 1e6,
        "compile s": took,
        "collectives": len(cost.collectives),
    }


def shared_bytes(work: str, one: Program) -> int:
    """Bytes of the images that all members of a program read; what it does not read is not in it."""
    data = one.shared[0]
    read = {"train": (data.train, data.triggered), "evaluate": data.test}.get(work, data.train)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))


def _lowered(function: Any, shapes: tuple[Any, ...], about: dict[str, Any]) -> Any:
    """The program with its arguments on one chip, or with the members spread over several."""

    def put(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    if about["chips"] == 1:
        return jax.jit(function).lower(*put(shapes, SingleDeviceSharding(targets.topology(about["kind"])[0])))
    mesh = targets.mesh(targets.slice_of(about["kind"], about["chips"]))
    along, everywhere = PartitionSpec("members"), PartitionSpec()
    specs = (along, *(everywhere,) * (len(shapes) - 1))
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=along, check_vma=False)
    placed = [put(shape, NamedSharding(mesh, spec)) for shape, spec in zip(shapes, specs, strict=True)]
    return jax.jit(sharded).lower(*placed)


def by_kind(loop: estimated.Loop) -> dict[str, int]:
    """The cycles of a step by kind of work."""
    found = dict.fromkeys([*KINDS, "other"], 0)
    for one in loop.instructions:
        last = one.source.rsplit("closed_call/", 1)[-1]
        found[next((kind for kind, words in KINDS.items() if any(word in last for word in words)), "other")] += one.cycles
    return found


def _matrix_cycles(about: dict[str, Any], net: Network) -> float:
    """Cycles that the multiplications of a step take with the matrix units always full: three times the forward pass to train."""
    rows = {"train": net.batch, "evaluate": 2 * net.batch}.get(about["work"], min(net.batch, 10 * about["spc"]))
    model = by_name(net.name, synthetic(1, 1, net.size).spec, width=net.width)
    passes = 1 if about["work"] == "evaluate" else PASSES
    return 2 * passes * rows * forward_macs(model, net.size) / TPUS[about["kind"]].per_cycle


def beside_one(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the ratio to one network after another in the same table."""
    same = ("kind", "work", "spc", "network", "dtype")
    form = f"{ALONE.strategy}/{ALONE.lowering}"
    alone = {tuple(row[k] for k in same): row.get("Mcycles") for row in rows if row["form"] == form and row["chips"] == 1}
    found = []
    for row in rows:
        base = alone.get(tuple(row[k] for k in same))
        found.append({**row, "beside one": row["Mcycles"] / base if base and "Mcycles" in row else None})
    return found


if __name__ == "__main__":
    main()
