"""What each attack costs a training, beside the same training without any: one member, the same steps, side by side.

    python -m benchmarks.attack_cost --out benchmarks/results/attack_cost_cpu

"ratio" is the time of one epoch over that of clean training (crops and flips, no trigger, nothing selected): the median over
rounds in which all attacks run in turn. What SSBA and Input-aware train before that comes on top.
"""

import argparse
import shlex
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.table import ATTACKS
from bdjax.keys import root
from bdjax.models import by_name
from bdjax.population import adapt, default_execution, members, run, stack
from bdjax.train.experiment import stage
from bdjax.types import Attack, Dataset, Recipe
from benchmarks.measure import NETWORKS, Network, attacked_by, network, seconds, synthetic, training_of, write

RATIO = 0.1


def main() -> None:
    """Measure, network by network; every row is written as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", type=network, default=list(NETWORKS[:2]), help="name:width:size:batch")
    parser.add_argument("--steps", type=int, default=20, help="per epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = f"python -m benchmarks.attack_cost {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, object]] = []
    for about in args.networks:
        dataset = synthetic(about.batch * args.steps, about.batch, about.size)
        calls = {name: _training(name, about, dataset) for name in ("clean", *args.attacks)}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            seconds(call, 1)  # compiles
        for _ in range(args.rounds):
            for name, call in calls.items():
                times[name] += seconds(call, 1)[1]
        clean = np.asarray(times["clean"])
        for name, took in times.items():
            ratio = float(np.median(np.asarray(took) / clean))
            row = {"network": str(about), "attack": name, "ratio": ratio, "ms/step": 1000 * min(took) / args.steps}
            rows.append(row)
            write(args.out, command, rows)
            print(row, flush=True)


def _clean(batch: int) -> Attack:
    def nothing(key, labels, count):
        return jnp.zeros(labels.shape[0], bool), jnp.bool_(True)

    return Attack(lambda key, assets: {}, nothing, lambda trigger, key, images: images, lambda labels: labels, Recipe(1, batch))


def _training(name: str, about: Network, dataset: Dataset):
    """A call that trains one member for one epoch."""
    rows, execution = len(dataset.train.labels), default_execution(model=about.name)
    stacked, _ = members([0], [RATIO], rows)
    if name == "clean":
        attack = _clean(about.batch)
        data = stage(attack, dataset, root())._replace(triggered=None)
    else:
        attack, data, assets = attacked_by(name, dataset, epochs=1, batch=about.batch)
        stacked = stacked._replace(assets=stack([assets]))
    model = adapt(by_name(about.name, dataset.spec, width=about.width), execution)
    function = training_of(model, attack, rows)
    return lambda: run(function, stacked, (data,), execution)


if __name__ == "__main__":
    main()
