"""Experiments per minute of every defense: a population in one call, beside the same members one by one.

    python -m benchmarks.defenses --out benchmarks/results/defenses_cpu

An experiment is one defense run and its evaluation on clean and triggered test images. "population": all members in one call, the
way the platform runs them by default; "batched": with vmap; "one by one": a call per member of a program for one member, compiled
once; "a program each": that compiled anew for every member, as one process per experiment does, from the measured times. Rounds
take the forms in turn; the figure is the median. Lengths are cut (`--cut`), the same for all forms.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bdjax.defenses.table import DEFENSES
from bdjax.models import by_name
from bdjax.population import Execution, adapt, default_execution, members, run
from bdjax.train.experiment import Data, Subject, defend_member
from bdjax.types import Attack, Model
from benchmarks.measure import Network, badnets_on, network, seconds, synthetic, write

CUT = {
    "ft": {"epochs": 20},
    "fp": {"epochs": 20},
    "nad": {"epochs": 10, "teacher_epochs": 10},
    "nc": {"epochs": 20, "search_epochs": 8},
    "ft_sam": {"epochs": 20},
    "fst": {"epochs": 10},
    "i_bau": {"rounds": 5},
    "sau": {"epochs": 4},
    "anp": {"iterations": 20, "batch": 128},
    "rnp": {"unlearn_epochs": 5, "recover_epochs": 5},
    "awn": {"epochs": 4},
    "npd": {"warmup_epochs": 1, "epochs": 5},
    "pbe": {"epochs": 4},
    "mm_bd": {"epochs": 10},
}
BATCHED = {"strategy": "vmap"}


def main() -> None:
    """Measure, defense by defense; every row is written as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=network, default=network("cnn:16:32:128"), help="name:width:size:batch")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--spc", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defenses", nargs="+", choices=list(DEFENSES), default=list(DEFENSES))
    parser.add_argument("--cut", action=argparse.BooleanOptionalAction, default=True, help="shortened lengths")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = f"python -m benchmarks.defenses {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for name in args.defenses:
        rows.append(_row(name, args))
        write(args.out, command, rows)
        print(rows[-1], flush=True)


def _row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    about: Network = args.network
    dataset = synthetic(2000, args.test_rows, about.size)
    attack, data = badnets_on(dataset, epochs=1, batch=about.batch)
    model = by_name(about.name, dataset.spec, width=about.width)
    config = CUT.get(name) if args.cut else None
    forms = {"population": default_execution(model=about.name)}
    forms["batched"] = forms["population"]._replace(**BATCHED)
    seeds, calls, first = range(args.members), {}, {}
    for form, execution in forms.items():
        calls[form] = _calls(name, config, model, attack, data, args.spc, execution, [seeds])[0]
        first[form] = seconds(calls[form], 0)[0]
    single = _calls(name, config, model, attack, data, args.spc, forms["population"], [[seed] for seed in seeds])
    alone = seconds(single[0], 0)[0]
    times: dict[str, list[float]] = {form: [] for form in (*calls, "one by one")}
    for _ in range(args.rounds):
        for form, call in calls.items():
            times[form].append(seconds(call, 0)[0])
        times["one by one"].append(sum(seconds(call, 0)[0] for call in single))
    minute = {form: 60 * args.members / float(np.median(took)) for form, took in times.items()}
    return {
        "defense": name,
        "network": str(about),
        "members": args.members,
        "spc": args.spc,
        "cut": "" if config is None else ", ".join(f"{k} {v}" for k, v in config.items()),
        **{f"{form} /min": minute[form] for form in times},
        "a program each /min": 60 / alone,
        "population : one by one": minute["population"] / minute["one by one"],
        "population : a program each": minute["population"] / (60 / alone),
        "first call s": first["population"],
    }


def _calls(
    name: str, config: Any, model: Model, attack: Attack, data: Data, spc: int, execution: Execution, groups: Any
) -> list[Callable[[], Any]]:
    """Per group of seeds a call that defends its members, with one program for all groups of a size.

    The networks are untrained: what they have learned does not change the work, but for NC's early stopping.
    """
    model = adapt(model, execution)
    defense = DEFENSES[name](model, config)
    function, init = defend_member(model, attack, defense, spc), jax.jit(jax.vmap(model.init))

    def call(seeds: Any) -> Callable[[], Any]:
        stack, _ = members(list(seeds), [0.1], len(data.train.labels), spc=spc, hyper=defense.hyper)
        subjects = Subject(stack, init(stack.key), {})
        return lambda: run(function, subjects, (data,), execution)

    return [call(seeds) for seeds in groups]


if __name__ == "__main__":
    main()
