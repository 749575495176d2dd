"""Candidates of one tuning, measured one after the other as far as a budget of seconds goes."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.population import execute
from bdjax.population.autotune.cache import LEFT_OUT
from bdjax.population.execution import Execution, adapt
from bdjax.population.memory import activation_bytes, device_memory
from bdjax.population.stacks import members as stack_of
from bdjax.train.trainer import trainer
from bdjax.types import Array, Attack, Key, Model, Recipe, Split

KEEP = 0.8  # forms this much slower than the fastest are not tried with other chunks
FINALISTS, ROUNDS = 3, 2  # the fastest are timed again, in turn
WORK, STEPS = 2**29, (4, 32)  # bytes of activations one member's measured steps keep in all, and the bounds on their number
FAILED = "failed:"  # how the reason of a candidate that raised begins
WORTH = 0.2  # seconds of measuring that settle a candidate


class Candidate(NamedTuple):
    """An execution that was measured and can be timed again."""

    row: dict[str, Any]
    execution: Execution
    call: Callable[[], Any]
    images: int


class Tuning:
    """What was measured so far, and what the budget still allows.

    Args:
      model: network, adapted or not.
      batch: rows of a training step.
      members: that will be trained; larger chunks are not tried.
      budget: seconds.
      say: gets one line per candidate.
    """

    def __init__(self, model: Model, batch: int, members: int, budget: float, say: Callable[[str], None] | None):
        self.model, self.batch, self.members, self.budget, self.say = model, batch, members, budget, say
        self.begun = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.measured: list[Candidate] = []
        self.kept = activation_bytes(model.rebuild(lowering="native"), batch)
        self.steps = min(max(WORK // self.kept, STEPS[0]), STEPS[1])
        self.attack, self.split, self.triggered = patch_work(model, batch, self.steps)

    def spent(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.begun

    def fitting(self, chunks: Sequence[int]) -> list[int]:
        """Return the chunks whose activations fit a device, at least the smallest."""
        return [chunk for chunk in chunks if chunk * self.kept <= device_memory()] or [min(chunks)]

    def with_chunk(self, form: Execution, chunk: int) -> Execution:
        """Return a form with so many members at once on each device, at most all of them; one by one there is no chunk."""
        if form.strategy == "sequential":
            return form
        return form._replace(chunk=min(chunk, -(-self.members // form.devices)) * form.devices)

    def fast_forms(self) -> list[Execution]:
        """Return the fastest forms that have a chunk and are not much slower than the best; all forms if none was measured."""
        ranked = sorted(self.measured, key=_rate, reverse=True)
        if not any(one.execution.strategy != "sequential" for one in ranked):
            tried = [Execution(**row["execution"]) for row in self.rows]
            return [execution for execution in tried if execution.strategy != "sequential"]
        near = [one.execution for one in ranked if _rate(one) >= KEEP * _rate(ranked[0])]
        return [execution for execution in near if execution.strategy != "sequential"][:2]

    def measure(self, executions: Iterable[Execution]) -> None:
        """Measure executions, each once, or say in their rows why not."""
        for execution in executions:
            if all(row["execution"] != execution._asdict() for row in self.rows):
                self._try(execution)

    def _try(self, execution: Execution) -> None:
        count = execute.at_once(execution, self.members)
        row: dict[str, Any] = dict(execution=execution._asdict(), members=count, rate=None, compile_seconds=None)
        row["reason"] = self._obstacle(execution, count)
        if row["reason"] is None:
            try:
                self._measure(row, execution, count)
            except Exception as error:  # out of memory, something this compiler refuses: the others go on
                lines = str(error).strip().splitlines()
                row["reason"] = f"{FAILED} {type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")
        self.rows.append(row)
        if self.say:
            result = row["reason"] or f"{row['rate']:,.0f} images/s, compiled in {row['compile_seconds']:.1f} s"
            self.say(f"{named(execution)}: {result}")

    def _obstacle(self, execution: Execution, count: int) -> str | None:
        """Why a candidate is not even tried, or None. A CPU has no way back from a population that is too large."""
        left = self.budget - self.spent()
        if self.rows and left <= 0:
            return f"{LEFT_OUT} the {self.budget:g} seconds were spent"
        if self.measured:
            least = 2 * count * self.batch * self.steps / max(map(_rate, self.measured))
            if least > left:
                return f"{LEFT_OUT} at the best rate so far it takes {least:.1f} seconds, {left:.1f} are left"
        form = execution._replace(chunk=0)._asdict()
        for row in self.rows:
            if {**row["execution"], "chunk": 0} == form and row["members"] <= count and (row["reason"] or "").startswith(FAILED):
                return f"not tried: {row['members']} at once failed"
        need, limit = count // execution.devices * activation_bytes(adapt(self.model, execution), self.batch), device_memory()
        if need > limit:
            return f"too large: {need / 2**30:.1f} GiB of activations, {limit / 2**30:.1f} GiB may be used"
        return None

    def _measure(self, row: dict[str, Any], execution: Execution, count: int) -> None:
        rows = self.batch * self.steps
        train = trainer(adapt(self.model, execution), self.attack, rows)
        stack, _ = stack_of(range(count), [0.1], rows)
        shared = (self.split, self.triggered)

        def function(member: Any, split: Split, triggered: Array) -> Any:
            return train(member, split, triggered, None)

        def call() -> Any:  # not `run`, which would go on with half the members where they do not fit
            return execute.call(function, stack, shared, execution)

        candidate = Candidate(row, execution, call, count * rows)
        first = _seconds(call)
        best = _settled(call)
        row.update(rate=candidate.images / best, compile_seconds=max(first - best, 0.0))
        self.measured.append(candidate)

    def finish(self) -> Candidate:
        """Time the fastest again, in turn, as far as the budget goes, and return the winner."""
        if not self.measured:
            raise UserError(f"no execution of {self.model.name} could be measured; the first: {self.rows[0]['reason']}")
        finalists = sorted(self.measured, key=_rate, reverse=True)[:FINALISTS]
        for _ in range(ROUNDS if len(finalists) > 1 else 0):
            for one in finalists:
                if one.images / _rate(one) < self.budget - self.spent():
                    one.row["rate"] = max(_rate(one), one.images / _settled(one.call))
        return max(finalists, key=_rate)


def named(execution: Execution) -> str:
    """Return an execution in a few words: vmap/mixed/dispatch, chunk 8."""
    text = f"{execution.strategy}/{execution.lowering}/{execution.loop}"
    text += f" x{execution.unroll}" * (execution.unroll > 1)
    text += f", chunk {execution.chunk}" * (execution.chunk > 0)
    return text + f", {execution.devices} devices" * (execution.devices > 1)


def patch_work(model: Model, batch: int, steps: int) -> tuple[Attack, Split, Array]:
    """Return a patch in the corner of a tenth of random images; the speed of a step does not depend on what they show."""

    def select(key: Key, labels: Array, count: Array) -> tuple[Array, Array]:
        return jax.random.permutation(key, labels.shape[0]) < count, jnp.bool_(True)

    def stamp(trigger: Any, key: Key, images: Array) -> Array:
        return images.at[:, -3:, -3:].set(jnp.ones((), images.dtype))

    rows, generator = batch * steps, np.random.default_rng(0)
    images = generator.integers(0, 256, (rows, *model.spec.image_shape), dtype=np.uint8)
    triggered = images.copy()
    triggered[:, -3:, -3:] = 255
    attack = Attack(lambda key, assets: {}, select, stamp, jnp.zeros_like, Recipe(epochs=1, batch=batch))
    labels = (np.arange(rows) % model.spec.classes).astype(np.int32)
    return attack, Split(jnp.asarray(images), jnp.asarray(labels)), jnp.asarray(triggered)


def _rate(one: Candidate) -> float:
    return one.row["rate"]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return max(time.perf_counter() - start, 1e-9)


def _settled(call: Callable[[], Any]) -> float:
    """Return the shortest of up to five calls, or of as many as last :data:`WORTH` seconds."""
    times: list[float] = []
    while not times or (sum(times) < WORTH and len(times) < 5):
        times.append(_seconds(call))
    return min(times)
