"""What a population runs, compiled for the chips of a TPU that is not here, as lines of JSON; a program of its own.

    python -m tests.population.tpu_programs v5e 4 train evaluate defend:clp

The wheel slows down other processes that can import it, so the tests start this one with the wheel on its path alone.
"""

import json
import sys

import jax
import jax.numpy as jnp

from bdjax.defenses.table import DEFENSES
from bdjax.keys import root
from bdjax.models.cnn import cnn
from bdjax.population import Execution, adapt, estimated, execute, members, targets
from bdjax.train.evaluate import evaluator
from bdjax.train.experiment import Subject, attack_member, defend_member, stage
from bdjax.types import Dataset, DataSpec, Split
from tests.short import shortened
from tests.toy import patch_attack

SPEC = DataSpec("tiny", (8, 8, 3), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False, 1)
ROWS, SPC = 64, 4
PARTS = ("temp", "argument", "output")


def main(kind, chips, *works):
    devices = targets.mesh(targets.slice_of(kind, int(chips)))
    execute._mesh = lambda count: devices  # in place of devices of this machine; all else is what a run compiles
    for work in works:
        print(json.dumps({"work": work, **described(compiled(work, int(chips)))}), flush=True)


def described(program):
    memory, cost = program.memory_analysis(), estimated.cost(program.as_text())
    needed = sum(getattr(memory, f"{part}_size_in_bytes") for part in PARTS)
    return {"bytes": needed, "collectives": cost.collectives, "cycles": cost.total, "loops": len(cost.loops)}


def compiled(work, chips):
    """The program of a work's name, ``work`` or ``work/strategy``; a member for each chip."""
    name, _, strategy = work.partition("/")
    batched = strategy != "sequential"
    function, one, shared = program(name, Execution(strategy or "vmap", "native", "scan"))
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chips, *a.shape), a.dtype), one)
    return execute.compiled(function, batched, chips, len(shared)).lower(stacked, *shared).compile()


def program(name, execution):
    """A function of one member, the shapes of its argument, and what all members read."""
    attack, model = patch_attack(epochs=2), adapt(cnn(SPEC, 4), execution)
    rows = Split(jnp.zeros((ROWS, *SPEC.image_shape), jnp.uint8), jnp.arange(ROWS, dtype=jnp.int32) % SPEC.classes)
    data = stage(attack, Dataset(SPEC, rows, rows, "tiny"), root())
    variables = jax.eval_shape(model.init, jax.random.key(0))
    if name == "train":
        return attack_member(model, attack, ROWS), member(), (data,)
    if name == "evaluate":
        evaluate = evaluator(model, attack, batch=ROWS // 2)
        return lambda one, data: evaluate(one, data.test), variables, (data,)
    if name == "talk":  # which no program of ours may do
        return lambda one, data: jax.lax.psum(one["params"], "members"), variables, (data,)
    defense = shortened(DEFENSES[name.removeprefix("defend:")], model)
    return defend_member(model, attack, defense, SPC), Subject(member(defense.hyper), variables, {}), (data,)


def member(hyper=None):
    stacked, _ = members([0], [0.1], ROWS, spc=SPC, hyper=hyper)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


if __name__ == "__main__":
    main(*sys.argv[1:])
