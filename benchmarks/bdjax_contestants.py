"""bdjax's share of the work that benchmarks/against_pytorch.py compares: train or fine-tune a population."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data import clean_subset
from bdjax.defenses import DEFENSES
from bdjax.experiment import Data, Subject, defend_member
from bdjax.keys import Stream, stream
from bdjax.models import MODELS, PRECISIONS
from bdjax.population import Execution, adapt, members, run
from bdjax.training import trainer
from bdjax.types import CleanSet, DefenderView, Model
from benchmarks.measure import badnets_on, synthetic

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
        fit = trainer(model, attack, rows)
        stack, _ = members(range(count), [0.1], rows)

        def train(member: Any, data: Data) -> Any:
            return fit(member, data.train, data.stamped, data.assets)

        return lambda: jax.block_until_ready(run(train, stack, (data,), execution)).loss.size * args.steps * args.batch
    defense = DEFENSES["ft"](model, {"epochs": args.epochs})
    stack, _ = members(range(count), [0.1], rows, spc=args.spc, hyper=defense.hyper)
    subjects = Subject(stack, jax.jit(jax.vmap(model.init))(stack.key), {})
    if work == "tune, evaluated":
        defend = defend_member(model, attack, defense, args.spc)

        def defended() -> int:
            result = jax.block_until_ready(run(defend, subjects, (data,), execution))
            return result.repair.trace.loss.size * args.spc * CLASSES + 2 * int(np.sum(np.asarray(result.counts.clean)))

        return defended

    @jax.jit
    def draw(member: Any, data: Data) -> CleanSet:
        index, role = clean_subset.draw(stream(member.key, Stream.CLEAN), data.train.labels, CLASSES, args.spc)
        return CleanSet(data.train.images[index], data.train.labels[index], role, member.spc)

    def repair(subject: Subject, data: Data) -> Any:
        view = DefenderView(subject.variables, clean=draw(subject.member, data))
        return defense.repair(stream(subject.member.key, Stream.DEFENSE), view, subject.member.hyper)

    return lambda: jax.block_until_ready(run(repair, subjects, (data,), execution)).trace.loss.size * args.spc * CLASSES


def forward_macs(model: Model, size: int) -> int:
    """Multiply-accumulates of one image's forward pass: those of convolutions and matrix products, padding included."""
    native = model.rebuild(lowering="native")
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(native.init, jax.random.key(0))
    return _macs(jax.make_jaxpr(lambda v, x: native.apply(v, x).logits)(variables, image).jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, kernel = equation.primitive.name, [v.aval.shape for v in equation.invars]
        if name == "conv_general_dilated":
            channels = equation.params["dimension_numbers"].rhs_spec[0]
            total += equation.outvars[0].aval.size * int(np.prod(kernel[1])) // kernel[1][channels]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += equation.outvars[0].aval.size * int(np.prod([kernel[0][i] for i in contracted]))
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        total += sum(_macs(p) for p in inner if hasattr(p, "eqns"))
    return total
