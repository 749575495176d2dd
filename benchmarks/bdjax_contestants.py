"""bdjax's share of the work that benchmarks/against_pytorch.py compares: train or fine-tune a population."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bdjax.defenses.table import DEFENSES
from bdjax.keys import Stream, stream
from bdjax.models import MODELS, PRECISIONS
from bdjax.population import Execution, adapt, members, run
from bdjax.train.experiment import Data, Subject, defend_member, draw_clean
from bdjax.types import DefenderView, Model
from benchmarks.measure import badnets_on, synthetic, training_of

CLASSES = 10


def network(args: argparse.Namespace) -> Model:
    """The network, not yet adapted to an execution."""
    return MODELS[args.model](synthetic(1, 1, args.size, CLASSES).spec, args.width).rebuild(dtype=PRECISIONS[args.dtype])


def ours(args: argparse.Namespace, work: str, count: int, execution: Execution) -> Callable[[], int]:
    """bdjax's share: ``call() -> images processed``."""
    model = adapt(network(args), execution)
    rows = args.batch * args.steps if work == "train" else 4 * args.spc * CLASSES
    dataset = synthetic(rows, max(args.eval_images, 1), args.size, CLASSES)
    attack, data = badnets_on(dataset, epochs=1, batch=args.batch)
    if work == "train":
        train = training_of(model, attack, rows)
        stack, _ = members(range(count), [0.1], rows)
        return lambda: jax.block_until_ready(run(train, stack, (data,), execution)).loss.size * args.steps * args.batch
    defense = DEFENSES["ft"](model, {"epochs": args.epochs})
    stack, _ = members(range(count), [0.1], rows, spc=args.spc, hyper=defense.hyper)
    subjects = Subject(stack, jax.jit(jax.vmap(model.init))(stack.key), {})
    if work == "tune, evaluated":
        defend = defend_member(model, attack, defense, args.spc)

        def defended() -> int:
            result = jax.block_until_ready(run(defend, subjects, (data,), execution))
            return result.defended.trace.loss.size * args.spc * CLASSES + 2 * int(np.sum(np.asarray(result.counts.clean)))

        return defended

    draw = jax.jit(lambda member, data: draw_clean(member, data.train, CLASSES, args.spc)[0])

    def defend(subject: Subject, data: Data) -> Any:
        view = DefenderView(subject.variables, clean=draw(subject.member, data))
        return defense.defend(stream(subject.member.key, Stream.DEFENSE), view, subject.member.hyper)

    return lambda: jax.block_until_ready(run(defend, subjects, (data,), execution)).trace.loss.size * args.spc * CLASSES
