"""What running in segments costs: the training of a population whole, and in segments with checkpoints on a disk, in turns.

    python -m benchmarks.segments --out benchmarks/results/segments

A network is NAME:WIDTH:EPOCHS. Both ways are compiled once, without JAX's cache; then they run in turns, so that what else the
machine does falls on both. `ratio` is the median of the seconds in segments over those whole of the same turn, compilation apart;
every run writes its checkpoints into a fresh folder.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bdjax import population
from bdjax.models import MODELS
from bdjax.population import Execution, adapt, default_execution, members, segments
from bdjax.population.segments import Pace
from bdjax.population.snapshots import Snapshot
from bdjax.store.provenance import Timed, timed
from bdjax.store.running import Keeper
from bdjax.train.experiment import attack_member
from benchmarks.measure import badnets_on, synthetic, write


class Counted(Keeper):
    """A keeper that counts what it writes."""

    count, size = 0, 0

    def keep(self, snapshot: Snapshot) -> None:
        """Count a snapshot and write it."""
        self.count, self.size = self.count + 1, sum(leaf.nbytes for leaf in snapshot.state)
        super().keep(snapshot)


def main() -> None:
    """Measure network by network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cnn:16:20", "preactresnet18:16:10", "mobilenet_v3_large:16:6"])
    parser.add_argument("--rows", type=int, default=512, help="training images")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--strategy", help="default: the network's on this platform")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--every", type=float, help="seconds between two checkpoints; default: by their cost")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows: list[dict[str, Any]] = []
    for network in args.networks:
        name, width, epochs = network.split(":")
        rows.append(measured(name, int(width), int(epochs), args))
        write(args.out, f"python -m benchmarks.segments {shlex.join(sys.argv[1:])}", rows, NOTES)


NOTES = (
    "`whole s` and `segments s` are medians of the turns, without compilation; `checkpoints` is how many a run wrote, `MB` the "
    "size of one. `compile s` is that of the first run of each way."
)


def measured(name: str, width: int, epochs: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one network in turns."""
    dataset = synthetic(args.rows, 500)
    model = MODELS[name](dataset.spec, width)
    execution = default_execution(model=model)._replace(devices=args.devices)
    if args.strategy:
        execution = execution._replace(strategy=args.strategy)
    attack, data = badnets_on(dataset, epochs=epochs, batch=128)
    stacked = members(range(args.members), [0.1], args.rows)[0]
    function = attack_member(adapt(model, execution), attack, args.rows)
    found: list[tuple[Timed, Timed]] = []
    for _ in range(1 + args.turns):  # the first one compiles
        whole = timed(lambda: population.run(function, stacked, (data,), execution))
        with tempfile.TemporaryDirectory() as folder, Counted(Path(folder), "cell", "set") as keeper:
            parted = timed(lambda to=keeper: in_segments(function, stacked, data, execution, to, args.every))
        found.append((whole, parted))
    seconds = np.array([[each.seconds for each in pair] for pair in found[1:]])
    return {
        "network": f"{name}:{width}",
        "form": population.named(execution),
        "devices": args.devices,
        "members": args.members,
        "epochs": epochs,
        "whole s": statistics.median(seconds[:, 0]),
        "segments s": statistics.median(seconds[:, 1]),
        "ratio": statistics.median(seconds[:, 1] / seconds[:, 0]),
        "least": float(np.min(seconds[:, 1]) / np.min(seconds[:, 0])),
        "checkpoints": keeper.count,
        "MB": keeper.size / 1e6,
        "compile s whole": found[0][0].compile_seconds,
        "compile s segments": found[0][1].compile_seconds,
    }


def in_segments(
    function: Callable[..., Any], stacked: Any, data: Any, execution: Execution, keeper: Keeper, every: float | None
) -> Any:
    """A population in segments, until its last checkpoint is written."""
    found = segments.run(function, stacked, (data,), execution, keeper=keeper, pace=Pace(every))
    keeper.wait()
    return found


if __name__ == "__main__":
    main()
