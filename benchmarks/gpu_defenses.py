"""Defenses of many networks on a few clean rows: a population, one network at a time, and PyTorch where it has the defense.

The networks are untrained: what they have learned does not change the work, but for Neural Cleanse's early stopping. An
experiment is the drawing of the clean rows and the defense; nothing is evaluated. Lengths are cut as in
``benchmarks/defenses.py``.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax

from bdjax.defenses.table import DEFENSES
from bdjax.keys import Stream, stream
from bdjax.population import Execution, adapt, members, named, run, take
from bdjax.train.experiment import Data, Subject, draw_clean
from bdjax.types import Defended, DefenderView, Defense, Model
from benchmarks.defenses import CUT
from benchmarks.gpu_headline import VARIANTS, likeliest, network, torch_job
from benchmarks.gpu_rows import Suite
from benchmarks.gpu_torch import START, beside
from benchmarks.measure import badnets_on, seconds, synthetic

CLASSES = 10
WITH_TORCH = "ft"  # the defense that the PyTorch reference has
ALONE = 3  # networks that are timed one at a time


def defenses(suite: Suite, args: argparse.Namespace) -> None:
    """Measure every defense, the first of them by two forms, of which the faster serves for the others."""
    model = network(args)
    dataset = synthetic(max(4 * args.spc * CLASSES, 200), 1, args.size)
    _, data = badnets_on(dataset, epochs=1, batch=args.batch)
    first, *others = likeliest(model)
    batched = max((form for form in others if form.strategy != "sequential"), key=lambda form: suite.rates.get(form, 0.0))
    forms = [_chunked(args, first), _chunked(args, batched)]
    rates: dict[Execution, float] = {}
    for name in args.defenses:
        for form in forms if not rates else [max(rates, key=lambda form: rates[form])]:
            row = _population(suite, args, model, data, name, form)
            if row is not None:
                rates.setdefault(form, row["experiments/min"])
        _alone(suite, args, model, data, name, first)
        if name == WITH_TORCH:
            for variant in args.torch_variants:
                _torch(suite, args, model, variant)


def _chunked(args: argparse.Namespace, form: Execution) -> Execution:
    return form if form.strategy == "sequential" else form._replace(chunk=min(args.chunk, args.population))


def images_of(name: str, defense: Defense, rows: int, classes: int) -> int:
    """Return about how many images a defense sends forward and backward for one network, at most."""
    c, passes = defense.config, 0
    if name in ("ft", "fp"):
        passes = c.epochs * rows
    elif name == "nc":
        passes = (c.search_epochs * classes + (c.epochs or 100)) * rows
    elif name == "anp":
        passes = c.iterations * c.batch * (c.inner_steps + 2)
    elif name == "i_bau":
        passes = c.rounds * (c.iterations + 3) * rows
    elif name == "nad":
        passes = (c.teacher_epochs + 2 * c.epochs) * rows
    elif name == "grad_prune":
        passes = (c.rounds + 2 * c.epochs) * rows
    return passes


def defending(defense: Defense, spc: int) -> Callable[[Subject, Data], Defended]:
    """Return the defense of one network on clean rows of its own drawing, without evaluation."""

    def function(subject: Subject, data: Data) -> Defended:
        clean, _ = draw_clean(subject.member, data.train, CLASSES, spc, defense.validation)
        view = DefenderView(subject.variables, clean)
        return defense.defend(stream(subject.member.key, Stream.DEFENSE), view, subject.member.hyper)

    return function


_KEPT: dict[Any, Any] = {}  # functions by what they were built for, so that a program is compiled once


def _ready(args: argparse.Namespace, model: Model, name: str, form: Execution) -> tuple[Any, Defense]:
    key = (model, name, form)
    if key not in _KEPT:
        defense = DEFENSES[name](adapt(model, form), CUT.get(name))
        _KEPT[key] = defending(defense, args.spc), defense
    return _KEPT[key]


def _subjects(args: argparse.Namespace, model: Model, data: Data, defense: Defense, count: int) -> Subject:
    stack, _ = members(range(count), [0.1], len(data.train.labels), spc=args.spc, hyper=defense.hyper)
    return Subject(stack, jax.jit(jax.vmap(model.init))(stack.key), {})


def _about(args: argparse.Namespace, name: str, how: str, count: int) -> dict[str, Any]:
    cut = ", ".join(f"{key} {value}" for key, value in CUT.get(name, {}).items())
    return {"part": "defenses", "what": name, "how": how, "dtype": args.dtype, "members": count, "spc": args.spc, "cut": cut}


def _population(
    suite: Suite, args: argparse.Namespace, model: Model, data: Data, name: str, form: Execution
) -> dict[str, Any] | None:
    """Measure all networks in one call, after a call for as few as compile the same program."""
    count, few = args.population, max(form.chunk, 1)
    function, defense = _ready(args, model, name, form)
    images = images_of(name, defense, args.spc * CLASSES, CLASSES)
    whole = form._replace(chunk=0)
    needed = suite.compile_seconds(whole, few) + suite.work_seconds((count + few) * images, whole)

    def measure() -> dict[str, Any]:
        subjects = _subjects(args, model, data, defense, count)
        first, _ = seconds(lambda: run(function, take(subjects, slice(few)), (data,), form), 0)
        took, _ = seconds(lambda: run(function, subjects, (data,), form), 0)
        suite.compiled(whole, few, first - took * few / count)
        return {"experiments/min": 60 * count / took, "first call s": first}

    return suite.attempt(_about(args, name, f"bdjax {named(form)}", count), needed, measure)


def _alone(suite: Suite, args: argparse.Namespace, model: Model, data: Data, name: str, form: Execution) -> None:
    """Measure a call for every network, of a program for one network that is compiled before."""
    form = form._replace(strategy="sequential", chunk=0)
    compilation = 0.0 if (model, name, form) in _KEPT else suite.compile_seconds(form, 1)
    function, defense = _ready(args, model, name, form)
    images = images_of(name, defense, args.spc * CLASSES, CLASSES)
    needed = compilation + suite.work_seconds((ALONE + 1) * images, form)

    def measure() -> dict[str, Any]:
        subjects = _subjects(args, model, data, defense, ALONE)
        first, _ = seconds(lambda: run(function, take(subjects, slice(1)), (data,), form), 0)
        start = time.perf_counter()
        for at in range(ALONE):
            jax.block_until_ready(run(function, take(subjects, slice(at, at + 1)), (data,), form))
        return {"experiments/min": 60 * ALONE / (time.perf_counter() - start), "first call s": first}

    suite.attempt(_about(args, name, f"bdjax, one network at a time ({form.lowering})", 1), needed, measure)


def _torch(suite: Suite, args: argparse.Namespace, model: Model, variant: str) -> None:
    """Measure the fine-tuning of one network after another with PyTorch."""
    defense = DEFENSES[WITH_TORCH](model, CUT[WITH_TORCH])
    config = defense.config
    job = torch_job(args, "tune", defense.hyper, batch=config.batch, rows=args.spc, epochs=config.epochs)

    def measure() -> dict[str, Any]:
        found = beside(job, compiled=variant == "compiled", models=ALONE, repeats=2, limit=suite.left())
        if "absent" in found:
            return {"skipped": found["absent"]}
        return {"experiments/min": 60 * ALONE / found["best"], "first call s": found["first"], "torch": found["torch"]}

    about = _about(args, WITH_TORCH, f"PyTorch {VARIANTS[variant]}, channels-last, one network at a time", 1)
    suite.attempt(about, START * (jax.default_backend() != "cpu"), measure)
