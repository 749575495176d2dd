"""What tuning found, kept in the cache: one JSON file per kind of work and machine."""

import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib

import bdjax
from bdjax.data.atomic import OWNER_ONLY, replace_file
from bdjax.data.cache import cache_root, written_in
from bdjax.errors import UserError
from bdjax.population.execution import Execution, check, recorded_execution
from bdjax.types import Model

LISTS = 2  # version of the lists of candidates and of how they are measured: raise it and everything is measured anew

LEFT_OUT = "no time:"  # how the reason of a candidate begins for which the budget was too small


class Tuned(NamedTuple):
    """What a tuning measured."""

    execution: Execution  # the fastest
    rate: float  # its training images per second, over all members and devices
    rows: tuple[dict[str, Any], ...]  # per candidate: execution, members at once, rate or None, compile_seconds, reason or None
    key: dict[str, Any]  # the work and the machine it holds for
    members: int  # for which it was asked
    budget: float  # seconds it was allowed
    seconds: float  # the tuning took
    date: str  # YYYY-MM-DD

    @property
    def complete(self) -> bool:
        """Whether the budget was enough for every candidate."""
        return not any((row["reason"] or "").startswith(LEFT_OUT) for row in self.rows)


def tuning_key(model: Model, batch: int, candidates: Sequence[Execution] | None) -> dict[str, Any]:
    """Return what a rate depends on, as JSON values: machine, work, versions, candidates (None = those of the platform)."""
    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.local_device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **work_key(model, batch),
        "lists": LISTS,
        "candidates": None if candidates is None else [execution._asdict() for execution in candidates],
    }


def work_key(model: Model, batch: int) -> dict[str, Any]:
    """Return what a training step is, on any machine, as JSON values: the network, its batch and the versions that compile it."""
    return {
        "model": model.name if model.source is None else f"{model.name} {model.source}",
        "width": model.width,
        "depth": model.depth,
        "image": list(model.spec.image_shape),
        "classes": model.spec.classes,
        "batch": batch,
        "dtype": compute_dtype(model),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "bdjax": bdjax.__version__,
    }


def compute_dtype(model: Model) -> str:
    """Return the name of the dtype the convolutions of a model compute in."""
    return jnp.dtype(model.dtype or jnp.float32).name


@functools.cache
def processor() -> str:
    """Return the name of the processor: JAX calls every one "cpu", and machines may share a cache folder."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def folder() -> Path:
    """Return the folder of the cached results."""
    return cache_root() / "tuned"


def path(key: Mapping[str, Any]) -> Path:
    """Return the file of a key."""
    return folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"


def prepare() -> None:
    """Make the folder, so that one that cannot be written shows before minutes of measuring; raises UserError then."""
    with written_in(folder()):
        folder().mkdir(parents=True, exist_ok=True)


def write(tuned: Tuned) -> None:
    """Store a result; the file appears complete or not at all.

    Raises:
      UserError: the cache cannot be written.
    """
    fields = {**tuned._asdict(), "execution": tuned.execution._asdict()}
    text = json.dumps(fields, indent=1, allow_nan=False)
    with written_in(folder()):
        replace_file(path(tuned.key), text.encode(), mode=OWNER_ONLY)


def read(key: Mapping[str, Any]) -> Tuned | None:
    """Return the stored result of a key, or None: there is none, or its file is damaged, which is named on stderr."""
    try:
        file = path(key)
    except UserError:  # no place for a cache: nothing was kept
        return None
    try:
        fields = json.loads(file.read_bytes())
        if fields["key"] != key:
            raise ValueError("it holds another key")
        execution = check(recorded_execution(fields.pop("execution")))
        rows = tuple({**row, "execution": recorded_execution(row["execution"])._asdict()} for row in fields.pop("rows"))
        tuned = Tuned(execution=execution, rows=rows, **fields)
        numbers = (tuned.rate, tuned.members, tuned.budget)
        if not all(isinstance(number, int | float) and number > 0 for number in numbers) or tuned.complete not in (True, False):
            raise ValueError("its numbers are out of range")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"bdjax: warning: the cache file {file} is damaged ({reason}); what it held is not used", file=sys.stderr)
        return None
    return tuned
