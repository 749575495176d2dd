"""Real images: networks trained with and without a backdoor, then repaired, seed by seed; ACC, ASR and RA of every network.

All seeds share their programs: the networks of a seed are defended in one call, whatever attacked them, and measured apart.
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.table import ATTACKS
from bdjax.data.loading import load
from bdjax.defenses.table import DEFENSES
from bdjax.keys import Stream, root, stream
from bdjax.metrics import rates
from bdjax.models import PRECISIONS
from bdjax.models.table import by_name
from bdjax.population import Execution, adapt, concatenate, default_execution, members, run, size, take
from bdjax.train.evaluate import apply_trigger, evaluator, finite
from bdjax.train.experiment import Subject, draw_clean, stage
from bdjax.types import Attack, Dataset, DefenderView, Member, Model
from benchmarks.gpu_defenses import images_of
from benchmarks.gpu_rows import Suite
from benchmarks.measure import training_of

SCENARIOS = (("badnets", (0.1, 0.0)), ("wanet", (0.1,)))  # never attacked = poison ratio 0, measured with BadNets' trigger
LONG = ("anp", "grad_prune")  # defenses that take as long as a training; they come after the short ones of all seeds
MARGIN = 1.2  # a first estimate, from the headline, leaves out what the attack and the rows cost


class Network(NamedTuple):
    """The trained networks of one seed and one attack."""

    attack: str
    ratios: tuple[float, ...]
    subjects: Subject


def cifar(suite: Suite, args: argparse.Namespace) -> None:
    """Train and measure seed by seed, each with the short defenses; then run the long ones."""
    about = {"part": "cifar", "what": args.dataset}
    try:
        dataset = load(args.dataset, args.data_dir, train_images=args.train_images, test_images=args.test_images)
    except Exception as error:  # no archives, or altered ones: the row has the reason
        suite.note(**about, skipped=f"the data set cannot be read: {str(error).splitlines()[0]}"[:300])
        return
    real = Real(suite, args, dataset)
    short = [name for name in args.repairs if name not in LONG]
    for seed in range(args.seeds):
        real.train(seed)
        real.repair(seed, short)
    for seed in range(args.seeds):
        real.repair(seed, [name for name in args.repairs if name in LONG])


class Real:
    """The data on the device, the programs, and the networks that were trained."""

    def __init__(self, suite: Suite, args: argparse.Namespace, dataset: Dataset) -> None:
        self.suite, self.args, self.dataset = suite, args, dataset
        model = by_name(args.model, dataset.spec, width=args.width).rebuild(dtype=PRECISIONS[args.dtype])
        self.form: Execution = suite.best() or default_execution(model=model)._replace(devices=1)
        self.model: Model = adapt(model, self.form)
        self.rows = len(dataset.train.labels)
        self.attacks: dict[str, Attack] = {}
        self.data, self.training, self.judging, self.drawing, self.defending = {}, {}, {}, {}, {}
        self.took: dict[Any, float] = {}  # seconds of what was done before
        self.networks: dict[int, list[Network]] = {}

    def train(self, seed: int) -> None:
        """Train the networks of a seed, attack by attack."""
        for name, ratios in SCENARIOS:
            needed = self._needed(name, len(ratios), self.rows * self.args.epochs)
            about = {"part": "cifar", "what": "train", "attack": name, "seed": seed, "members": len(ratios)}
            self.suite.attempt(about, needed, functools.partial(self._train, name, ratios, seed))

    def _train(self, name: str, ratios: tuple[float, ...], seed: int) -> dict[str, Any]:
        if name not in self.attacks:
            attack = ATTACKS[name](self.dataset.spec)
            self.attacks[name] = attack._replace(recipe=attack.recipe._replace(epochs=self.args.epochs, batch=self.args.batch))
            self.data[name] = stage(self.attacks[name], self.dataset, root())
            self.training[name] = training_of(self.model, self.attacks[name], self.rows)
            self.judging[name] = self._judge(self.attacks[name])
        stack, _ = members([seed], ratios, self.rows)
        start = time.perf_counter()
        trained = jax.block_until_ready(run(self.training[name], stack, (self.data[name],), self.form))
        took = self._took(name, len(ratios), self.rows * self.args.epochs, time.perf_counter() - start)
        network = Network(name, ratios, Subject(stack, trained.variables, trained.trigger))
        self.networks.setdefault(seed, []).append(network)
        self._report(network, trained.variables, seed, {"defense": "none"})
        images = self.rows // self.args.batch * self.args.batch * self.args.epochs * len(ratios)
        return {"img/s": images / took, "seconds": took, "epochs": self.args.epochs, "dtype": self.args.dtype}

    def _judge(self, attack: Attack) -> Any:
        evaluate = evaluator(self.model, attack)

        def judge(subject: Subject, data: Any) -> Any:
            counts = evaluate(subject.variables, data.test, subject.trigger, stream(subject.member.key, Stream.TRIGGER))
            return counts, finite(subject.variables)

        return judge

    def _report(self, network: Network, variables: Any, seed: int, about: dict[str, Any]) -> None:
        """Measure networks of one attack, and write a row for each."""
        subjects = network.subjects._replace(variables=variables)
        counts, usable = run(self.judging[network.attack], subjects, (self.data[network.attack],), self.form)
        shares = rates(jax.tree.map(np.asarray, counts))
        for at, ratio in enumerate(network.ratios):
            found: dict[str, Any] = {"failed": "the parameters are not finite"}
            if usable[at]:
                found = dict(zip(("ACC", "ASR", "RA"), (float(share[at]) for share in shares), strict=True))
            attack = network.attack if ratio else "never attacked"
            self.suite.note(part="cifar", what="network", attack=attack, ratio=ratio, seed=seed, **about, **found)

    def repair(self, seed: int, names: list[str]) -> None:
        """Defend the networks of a seed, if there are any, by each of these defenses with each number of samples per class."""
        for at, spc in enumerate(self.args.repair_spc):
            for name in names:
                needs_data = bool(DEFENSES[name](self.model).needs)
                if at and not needs_data:
                    continue  # it is the same for any number of samples
                about = {"part": "cifar", "what": "defend", "defense": name, "spc": spc if needs_data else None, "seed": seed}
                networks = self.networks.get(seed)
                if not networks:
                    self.suite.note(**about, skipped="no network of this seed was trained")
                    continue
                needed = self._needed((name, spc), sum(len(each.ratios) for each in networks), self._images(name, spc))
                repair = functools.partial(self._repair, name, spc, seed, networks)
                self.suite.attempt(about, needed, repair)

    def _images(self, name: str, spc: int) -> int:
        classes = self.dataset.spec.classes
        return images_of(name, DEFENSES[name](self.model), spc * classes, classes)

    def _needed(self, what: Any, count: int, images: int) -> float:
        """Return the seconds that something is expected to take: as before, or by the headline, with a compilation."""
        if (what, count) in self.took:
            return self.took[what, count]
        compilation = self.suite.compile_seconds(self.form, count)
        return compilation + MARGIN * self.suite.work_seconds(count * images, self.form)

    def _took(self, what: Any, count: int, images: int, seconds: float) -> float:
        """Keep what something took, for the next time: the first time without what its compilation is expected to have taken."""
        compilation = 0.0 if (what, count) in self.took else self.suite.compile_seconds(self.form, count)
        self.took[what, count] = max(seconds - compilation, self.suite.work_seconds(count * images, self.form))
        return seconds

    def _repair(self, name: str, spc: int, seed: int, networks: list[Network]) -> dict[str, Any]:
        defense = DEFENSES[name](self.model)
        if name not in self.defending:
            self.defending[name] = lambda one: defense.defend(one[0], one[1], one[2])
        views, keys, hypers = [], [], []
        for network in networks:
            member = network.subjects.member._replace(spc=jnp.full((len(network.ratios),), spc, jnp.int32))
            views.append(self._views(network, member, spc, defense))
            keys.append(jax.vmap(lambda key: stream(key, Stream.DEFENSE))(member.key))
            hypers.append(jax.tree.map(lambda x, like=member.spc: jnp.full(like.shape, x), defense.hyper))
        stacked = tuple(concatenate(each) for each in (keys, views, hypers))
        start = time.perf_counter()
        defended = jax.block_until_ready(run(self.defending[name], stacked, (), self.form))
        took = self._took((name, spc), size(stacked), self._images(name, spc), time.perf_counter() - start)
        done = 0
        for network in networks:
            mine = take(defended.variables, slice(done, done + len(network.ratios)))
            self._report(network, mine, seed, {"defense": name, "spc": spc if defense.needs else None})
            done += len(network.ratios)
        return {"members": done, "seconds": took, "dtype": self.args.dtype}

    def _views(self, network: Network, member: Member, spc: int, defense: Any) -> DefenderView:
        """Return what a defense may see of the networks of one attack, drawn as everywhere else."""
        key = network.attack, spc, defense.validation, defense.needs
        if key not in self.drawing:
            attack, classes = self.attacks[network.attack], self.dataset.spec.classes

            def draw(subject: Subject, data: Any) -> DefenderView:
                view = DefenderView(subject.variables)
                if not defense.needs & {"clean", "triggered"}:
                    return view
                clean, index = draw_clean(subject.member, data.train, classes, spc, defense.validation)
                view = view._replace(clean=clean)
                if "triggered" not in defense.needs:
                    return view
                if data.triggered is not None:
                    return view._replace(triggered=data.triggered[index])
                copies = stream(subject.member.key, Stream.TRIGGER)
                return view._replace(triggered=apply_trigger(attack, subject.trigger, copies, clean.images))

            self.drawing[key] = draw
        subjects = network.subjects._replace(member=member)
        return run(self.drawing[key], subjects, (self.data[network.attack],), Execution("sequential"))
