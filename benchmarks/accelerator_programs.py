"""The programs whose cost `benchmarks/accelerators.py` asks an accelerator's compiler for: shapes only, nothing runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.defenses.table import DEFENSES
from bdjax.keys import Stream, stream
from bdjax.models import PRECISIONS, by_name
from bdjax.population import Execution, adapt, members
from bdjax.train.evaluate import evaluator
from bdjax.train.experiment import Data, Subject, draw_clean
from bdjax.types import DefenderView, Model
from benchmarks.measure import Network, badnets_on, synthetic, training_of

CLASSES, STEPS = 10, 8
WORKS = ("train", "evaluate", *DEFENSES)


class Program(NamedTuple):
    """A function of one member, and the shapes of its arguments."""

    function: Callable[..., Any]
    member: Any  # of one member
    shared: tuple[Any, ...]  # what all members read


def program(work: str, about: Network, execution: Execution, dtype: str, spc: int = 2) -> Program:
    """What one member runs.

    Args:
      work: "train" (batches of ``about.batch`` rows under BadNets), "evaluate" (as many rows per step), or a defense by its
        name, which gets ``spc`` samples of each of 10 classes.
      about: the network.
      execution: the form.
      dtype: of activations and convolutions.
      spc: clean samples per class of a defense.
    """
    rows = about.batch * STEPS
    dataset = synthetic(rows, about.batch * STEPS if work == "evaluate" else about.batch, about.size, CLASSES)
    attack, data = badnets_on(dataset, epochs=1, batch=about.batch)
    network = by_name(about.name, dataset.spec, width=about.width).rebuild(dtype=PRECISIONS[dtype])
    model = adapt(network, execution)
    if work == "train":
        stack, _ = members([0], [0.1], rows)
        return Program(training_of(model, attack, rows), _first(stack), (_shapes(data),))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    if work == "evaluate":
        evaluate = evaluator(model, batch=about.batch)
        return Program(lambda one, data: evaluate(one, data.test), variables, (_shapes(data),))
    defend, hyper = _defend(work, model, spc)
    stack, _ = members([0], [0.1], rows, spc=spc, hyper=hyper)
    return Program(defend, Subject(_first(stack), variables, {}), (_shapes(data),))


def for_members(about: Program, execution: Execution, count: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program of a population on one device, and its arguments' shapes; one after another is the program of one member."""
    if execution.strategy == "sequential":
        return about.function, (about.member, *about.shared)
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), about.member)
    return jax.vmap(about.function, in_axes=(0, *(None,) * len(about.shared))), (stacked, *about.shared)


def _defend(name: str, model: Model, spc: int) -> tuple[Callable[[Subject, Data], Any], Any]:
    """A defense without the evaluation after it."""
    defense = DEFENSES[name](model)

    def defend(subject: Subject, data: Data) -> Any:
        clean = draw_clean(subject.member, data.train, CLASSES, spc)[0]
        view = DefenderView(subject.variables, clean=clean)
        return defense.defend(stream(subject.member.key, Stream.DEFENSE), view, subject.member.hyper)

    return defend, defense.hyper


def _first(stacked: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), tree)
