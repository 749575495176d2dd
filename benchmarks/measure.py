"""What the benchmarks share: synthetic work, timing, the description of the machine. Imports jax, numpy and bdjax's core only."""

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bdjax
from bdjax.attacks.table import ATTACKS
from bdjax.keys import root
from bdjax.train.experiment import Data, preparation, stage
from bdjax.train.trainer import Trained, trainer
from bdjax.types import Attack, Dataset, DataSpec, Member, Model, Split


def synthetic(rows: int, test_rows: int, size: int = 32, classes: int = 10) -> Dataset:
    """Random images with CIFAR-10's static facts: the speed of a step does not depend on what the images show."""
    generator = np.random.default_rng(0)
    spec = DataSpec("synthetic", (size, size, 3), classes, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), True, 4)

    def split(n: int) -> Split:
        return Split(generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8), (np.arange(n) % classes).astype(np.int32))

    return Dataset(spec, split(rows), split(test_rows), "synthetic")


def badnets_on(dataset: Dataset, *, epochs: int, batch: int) -> tuple[Attack, Data]:
    """BadNets with a short recipe, and its data on the device."""
    return attacked_by("badnets", dataset, epochs=epochs, batch=batch)[:2]


def attacked_by(name: str, dataset: Dataset, *, epochs: int, batch: int) -> tuple[Attack, Data, Any]:
    """An attack with a short recipe, its data on the device, and the assets of a member (None where it prepares none per seed).

    Nothing is prepared: what networks draw does not change what a step costs. An attack that prepares for the data set gets
    inverted images as its copies, one that prepares per seed gets networks of ones.
    """
    attack = ATTACKS[name](dataset.spec)
    attack = attack._replace(recipe=attack.recipe._replace(epochs=epochs, batch=batch))
    if attack.prepare is not None and attack.recipe.prepare_per == "dataset":
        attack = attack._replace(prepare=None, init=lambda key, assets: {}, stamp=lambda trigger, key, images: 1 - images)
    data = stage(attack, dataset, root())
    if attack.prepare is None:
        return attack, data, None
    shapes = jax.eval_shape(preparation(attack, dataset), root(), data)
    return attack, data, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def training_of(model: Model, attack: Attack, rows: int) -> Callable[..., Trained]:
    """The training of one member as the population runs it, without evaluation: ``f(member, data: Data) -> Trained``."""
    train = trainer(model, attack, rows)

    def function(member: Member, data: Data) -> Trained:
        return train(member, data.train, data.triggered, data.assets)

    return function


class Network(NamedTuple):
    """What a benchmark builds, written ``name:width:size:batch`` on the command line."""

    name: str
    width: int
    size: int
    batch: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


def network(text: str) -> Network:
    """A network from its text, for ``argparse``."""
    name, *numbers = text.split(":")
    return Network(name, *map(int, numbers))


NETWORKS = tuple(network(text) for text in ("preactresnet18:16:32:64", "cnn:16:32:128", "cnn:8:16:128"))


def seconds(call: Callable[[], Any], repeats: int) -> tuple[float, list[float]]:
    """Time of the first call (with its compilation) and of ``repeats`` further calls, each waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times[0], times[1:]


def matmul_ceiling(size: int, dtype: Any, repeats: int = 10) -> float:
    """Measured FLOP/s of a square matrix product: the ceiling that utilisation refers to."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / min(seconds(lambda: product(a), repeats)[1])


def machine() -> dict[str, Any]:
    """Device, versions, commit and date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind} x{jax.local_device_count()}",
        "cpu": platform.processor() or platform.machine(),
        "bdjax": bdjax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def write(path: Path, command: str, rows: list[dict[str, Any]], notes: str = "", *, table: bool = True) -> None:
    """Write the rows as JSON and as a Markdown table, with the command and the machine; meant to be called after every row.

    With ``table`` False the Markdown holds only the notes: thousands of rows are no table to read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    path.with_suffix(".json").write_text(json.dumps({"command": command, "machine": about, "rows": rows}, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"Command: `{command}`", "", ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    if table:
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join([*lines, "", notes]).rstrip() + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
