"""The headline of the suite for a GPU: how fast networks train, by form and number of members, beside PyTorch."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.models import PRECISIONS
from bdjax.models.table import by_name
from bdjax.population import Execution, adapt, forms, members, named, run
from bdjax.population.execute import call
from bdjax.population.multiplications import forward_macs
from bdjax.types import Model
from benchmarks.gpu_rows import Suite
from benchmarks.gpu_torch import START, beside
from benchmarks.measure import badnets_on, matmul_ceiling, seconds, synthetic, training_of

FORMS = 3  # the likeliest
VARIANTS = {"compiled": "torch.compile", "eager": "eager"}


def network(args: argparse.Namespace) -> Model:
    """Return the network that everything is measured on, not yet adapted to an execution."""
    spec = synthetic(1, 1, args.size).spec
    return by_name(args.model, spec, width=args.width).rebuild(dtype=PRECISIONS[args.dtype])


def likeliest(model: Model) -> list[Execution]:
    """Return the forms that are measured: those that tuning compares on a GPU, the likeliest first, on one device."""
    return list(dict.fromkeys(form._replace(devices=1) for form in forms(model, "gpu")))[:FORMS]


def headline(suite: Suite, args: argparse.Namespace) -> None:
    """Measure the ceiling, one network, PyTorch, then the populations, then the other forms with the fewest members."""
    model = network(args)
    suite.macs = forward_macs(model, args.size)
    suite.attempt({"part": "headline", "what": "matrix product", "dtype": args.dtype}, 0, lambda: _ceiling(suite, args))
    first, *others = likeliest(model)
    training = Training(suite, args, model)
    fewest, *more = args.members
    training.measure(first, fewest)
    for variant in args.torch_variants:
        _torch(suite, args, variant)
    for count in more:
        for form in (first, *others):
            training.measure(form, count)
    for form in others:
        training.measure(form, fewest)


def _ceiling(suite: Suite, args: argparse.Namespace) -> dict[str, Any]:
    suite.ceiling = matmul_ceiling(args.matmul, jnp.dtype(args.dtype))
    return {"TFLOP/s": suite.ceiling / 1e12}


class Training:
    """The training of members by one form after another."""

    def __init__(self, suite: Suite, args: argparse.Namespace, model: Model) -> None:
        self.suite, self.args, self.model = suite, args, model
        self.images = args.batch * args.steps
        self.attack, self.data = badnets_on(synthetic(self.images, 1, args.size), epochs=1, batch=args.batch)
        self.programs: dict[Execution, Any] = {}

    def measure(self, form: Execution, count: int) -> None:
        """Measure one form with so many members, if there is time for it."""
        repeats = 3 if count <= 8 else 1
        again = form.strategy == "sequential" and form in self.suite.compiles  # one program serves any number of members
        needed = 0.0 if again else self.suite.compile_seconds(form, count)
        needed += self.suite.work_seconds((repeats + 1) * count * self.images, form)
        about = {"part": "headline", "what": "train", "how": f"bdjax {named(form)}", "dtype": self.args.dtype, "members": count}
        self.suite.attempt(about, needed, lambda: self._measured(form, count, repeats))

    def _measured(self, form: Execution, count: int, repeats: int) -> dict[str, Any]:
        if form not in self.programs:
            self.programs[form] = training_of(adapt(self.model, form), self.attack, self.images)
        function, shared = self.programs[form], (self.data,)
        stack, _ = members(range(count), [0.1], self.images)
        # Not `run` for members side by side: it would go on with half of them where they do not fit.
        one = run if form.strategy == "sequential" else call
        first, later = seconds(lambda: one(function, stack, shared, form), repeats)
        rate = count * self.images / min(later)
        self.suite.learn(form, count, rate, first - min(later))
        return {"img/s": rate, "MFU": self.suite.mfu(rate), "first call s": first}


def torch_job(args: argparse.Namespace, work: str, sgd: Any, *, batch: int, rows: int, epochs: int) -> dict[str, Any]:
    """Return a job for PyTorch in plain values."""
    spec = synthetic(1, 1, args.size).spec
    return {
        "work": work,
        "network": args.model,
        "width": args.width,
        "size": args.size,
        "classes": spec.classes,
        "mean": spec.mean,
        "std": spec.std,
        "batch": batch,
        "rows": rows,
        "epochs": epochs,
        "eval_images": 0,
        "dtype": args.dtype,
        "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
        "sgd": [float(sgd.lr), float(sgd.momentum), float(sgd.weight_decay)],
    }


def _torch(suite: Suite, args: argparse.Namespace, variant: str) -> None:
    """Measure the training of one network after another with PyTorch."""
    recipe = badnets_on(synthetic(1, 1, args.size), epochs=1, batch=args.batch)[0].recipe
    job = torch_job(args, "train", recipe, batch=args.batch, rows=args.batch * args.steps, epochs=1)
    how = f"PyTorch {VARIANTS[variant]}, channels-last, one network at a time"

    def measure() -> dict[str, Any]:
        found = beside(job, compiled=variant == "compiled", models=1, repeats=3, limit=suite.left())
        if "absent" in found:
            return {"skipped": found["absent"]}
        rate = found["images"] / found["best"]
        return {"img/s": rate, "MFU": suite.mfu(rate), "first call s": found["first"], "torch": found["torch"]}

    about = {"part": "headline", "what": "train", "how": how, "dtype": args.dtype, "members": 1}
    suite.attempt(about, START * (jax.default_backend() != "cpu"), measure)
