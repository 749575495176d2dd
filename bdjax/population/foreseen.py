"""What training costs on devices that are not here, by their own compiler: images per second, memory and compile time.

Of a TPU the images per second follow from the compiler's own estimate of a step's cycles (:mod:`bdjax.population.estimated`).
A GPU's compiler has no such estimate: there the figure is a bound, the longer of the times that the multiplications take and that
the activations take which are written for the gradient and read again.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bdjax.data.atomic import OWNER_ONLY, replace_file
from bdjax.data.cache import cache_root, written_in
from bdjax.errors import first_line
from bdjax.population import estimated, targets
from bdjax.population.autotune.cache import work_key
from bdjax.population.autotune.candidates import patch_work
from bdjax.population.execution import Execution, adapt, default_execution
from bdjax.population.memory import MEMORY_SHARE, activation_bytes, program_bytes
from bdjax.population.multiplications import PASSES, forward_macs
from bdjax.population.stacks import members as stack_of
from bdjax.train.trainer import trainer
from bdjax.types import Model

STEPS = 2  # of the training that is compiled: a loop, whose body counts once
TOGETHER = 4  # members of the program that is compiled where they run side by side; a step's cost is in proportion from there on


class Foreseen(NamedTuple):
    """The training of one network on one device of a kind, as its compiler sees it."""

    execution: Execution  # that it was compiled for
    rate: float  # images per second of one device, over all its members
    bound: bool  # the rate is a bound from the data sheet, not an estimate of the compiler
    member_bytes: int  # of one member on the device
    compile_seconds: float  # on this machine
    about: str  # what the figures come from


def foresee(model: Model, target: targets.Target, *, batch: int, say: Callable[[str], None] | None = None) -> Foreseen:
    """Compile the training of a network for a target and read what it costs; kept in the cache.

    Args:
      model: network, adapted or not.
      target: the devices.
      batch: rows of a training step.
      say: hears a line before something is compiled.

    Raises:
      UserError: the target's compiler is not installed, or the cache cannot be written.
    """
    execution = default_execution(target.platform, model)._replace(devices=1)
    key = {
        "kind": target.kind,
        "compiler": targets.version(target.platform),
        "execution": execution._asdict(),
        **work_key(model, batch),
    }
    file = cache_root() / "foreseen" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"
    kept = _kept(file, key, execution)
    if kept is not None:
        return kept
    if say is not None:
        say(f"{model.name}, batch {batch}: compiling for {target.kind}")
    found = _compiled(adapt(model, execution), execution, target, batch)
    with written_in(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, "found": {k: v for k, v in found._asdict().items() if k != "execution"}})
        replace_file(file, text.encode(), mode=OWNER_ONLY)
    return found


def _kept(file: Path, key: dict[str, Any], execution: Execution) -> Foreseen | None:
    """What the cache holds of a key; None where there is nothing, or its file is damaged, which is named on stderr."""
    try:
        kept = json.loads(file.read_bytes())
        return Foreseen(execution, **kept["found"]) if kept["key"] == key else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        print(f"bdjax: warning: the cache file {file} is damaged ({why}); what it held is not used", file=sys.stderr)
        return None


def _compiled(model: Model, execution: Execution, target: targets.Target, batch: int) -> Foreseen:
    rows, count = batch * STEPS, 1 if execution.strategy == "sequential" else TOGETHER
    attack, split, triggered = patch_work(model, batch, STEPS)
    train = trainer(model, attack, rows)
    stack, _ = stack_of(range(count), [0.1], rows)

    def function(member: Any, split: Any, triggered: Any) -> Any:
        return train(member, split, triggered, None)

    run: Callable[..., Any] = function
    if count == 1:
        stack = jax.tree.map(lambda leaf: leaf[0], stack)
    else:
        run = jax.vmap(function, in_axes=(0, None, None))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=target.sharding), (stack, split, triggered))
    start = time.perf_counter()
    program = jax.jit(run).lower(*shapes).compile()
    took = time.perf_counter() - start
    shared = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((split, triggered)))
    total = program_bytes(program)
    seconds, bound, about = _seconds_of_a_step(program, model, batch, count, target)
    return Foreseen(execution, count * batch / seconds, bound, max(total - shared, 1) // count, took, about)


def _seconds_of_a_step(program: Any, model: Model, batch: int, count: int, target: targets.Target) -> tuple[float, bool, str]:
    """(seconds of a step of all members of a program, whether that is a bound, where it comes from)."""
    chip = target.chip
    if target.platform == "tpu":
        cycles = estimated.cost(program.as_text()).step.cycles
        return cycles / chip.clock, False, f"the compiler estimates {cycles:,} cycles of a step at {chip.clock / 1e9:.2f} GHz"
    computing = 2 * PASSES * batch * forward_macs(model, model.spec.image_shape[0]) / chip.peak
    moving = 2 * activation_bytes(model, batch) / chip.bandwidth
    what = "multiplications" if computing > moving else "activations"
    return count * max(computing, moving), True, f"its {what} at the rates of the data sheet"


def fitting(found: Foreseen, target: targets.Target, shared: int) -> int:
    """How many members fit a device beside ``shared`` bytes of images."""
    return max((int(target.chip.memory * MEMORY_SHARE) - shared) // found.member_bytes, 0)
