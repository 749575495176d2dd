"""One member's experiments from end to end: train and measure, defend and measure.

These compositions are what ``run``, ``sweep`` and the benchmarks hand to :mod:`bdjax.population`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data import clean_subset
from bdjax.keys import Stream, stream
from bdjax.train.assets import prepared
from bdjax.train.evaluate import Counts, EvalSet, apply_trigger, evaluator, finite
from bdjax.train.trainer import Report, Trained, trainer
from bdjax.types import (
    Array,
    Attack,
    CleanSet,
    Dataset,
    Defended,
    DefenderView,
    Defense,
    Int,
    Key,
    Member,
    Model,
    Split,
    UInt8,
    Variables,
)

CHUNK = 1000  # rows to which the trigger is applied at once


class Data(NamedTuple):
    """What all members of a cell share, on the device."""

    train: Split
    triggered: Array | None  # u8[n h w c]: triggered copies of the training rows, where the trigger is shared
    test: EvalSet
    assets: Any  # what the attack prepared for the data set


class Subject(NamedTuple):
    """A trained member before it is defended."""

    member: Member
    variables: Variables
    trigger: Any


class DefenseRun(NamedTuple):
    """A defended member. ``defended.variables`` is empty unless asked for: a population of networks is large."""

    defended: Defended
    counts: Counts
    finite: Array  # bool[]: the defended parameters are finite


def stage(attack: Attack, dataset: Dataset, key: Key) -> Data:
    """Put a data set on the device and compute once what all members share; an attack that is known by images brings them.

    Args:
      attack: what it prepares per data set is read from disk, or prepared now and kept (:mod:`bdjax.train.assets`). What it
        prepares per seed belongs to the members: :func:`bdjax.population.prepare`.
      dataset: host arrays.
      key: root key; the preparation draws from its own stream.
    """
    shared = attack.prepare is not None and attack.recipe.prepare_per == "dataset"
    assets = jax.tree.map(jnp.asarray, prepared(attack, dataset, stream(key, Stream.PREPARE))) if shared else None
    train, test = (Split(jnp.asarray(s.images), jnp.asarray(s.labels, jnp.int32)) for s in (dataset.train, dataset.test))
    if attack.triggered is not None:
        images, truth, attack_labels = (jnp.asarray(x) for x in attack.triggered()[:3])
        given = EvalSet(test.images, test.labels, images, attack_labels.astype(jnp.int32), truth.astype(jnp.int32))
        return Data(train, None, given, None)
    train_triggered = test_triggered = None
    if attack.recipe.shared_trigger:
        trigger = attack.init(stream(key, Stream.TRIGGER), assets)
        while_training = attack._replace(stamp=attack.train_stamp or attack.stamp)
        if attack.batch is None:
            train_triggered = apply_trigger_to_all(while_training, trigger, key, dataset.train.images)
        test_triggered = apply_trigger_to_all(attack, trigger, key, dataset.test.images)
    return Data(train, train_triggered, EvalSet(test.images, test.labels, test_triggered, attack.relabel(test.labels)), assets)


def preparation(attack: Attack, dataset: Dataset) -> Callable[..., Any]:
    """``f(key, data: Data) -> assets`` of an attack that prepares per seed; of ``dataset`` only facts are read, not images."""
    assert attack.prepare is not None
    prepare = attack.prepare

    def run(key: Key, data: Data) -> Any:
        return prepare(key, Dataset(dataset.spec, data.train, Split(data.test.images, data.test.labels), dataset.digest))

    return run


def trigger_form(attack: Attack, dataset: Dataset, data: Data) -> Any:
    """The trigger of one member as shapes: its structure is what stored leaves are put together by."""
    assets: Any = data.assets
    if attack.prepare is not None and attack.recipe.prepare_per == "seed":
        assets = jax.eval_shape(preparation(attack, dataset), jax.random.key(0), data)
    return jax.eval_shape(attack.init, jax.random.key(0), assets)


def apply_trigger_to_all(
    attack: Attack, trigger: Any, key: Key, images: UInt8[Array | np.ndarray, "n h w c"]
) -> UInt8[Array, "..."]:
    """Triggered copies of any number of images, :data:`CHUNK` at a time."""
    apply = jax.jit(lambda rows: apply_trigger(attack, trigger, key, rows))
    parts = [np.asarray(apply(jnp.asarray(images[i : i + CHUNK]))) for i in range(0, len(images), CHUNK)]
    return jnp.asarray(np.concatenate(parts))


def attack_member(model: Model, attack: Attack, rows: int, report: Report | None = None) -> Callable[..., tuple[Trained, Counts]]:
    """Train one backdoored member and measure it: ``f(member, data: Data) -> (Trained, Counts)``."""
    train, evaluate = trainer(model, attack, rows, report), evaluator(model, attack)

    def run(member: Member, data: Data) -> tuple[Trained, Counts]:
        trained = train(member, data.train, data.triggered, data.assets)
        return trained, evaluate(trained.variables, data.test, trained.trigger, stream(member.key, Stream.TRIGGER))

    return run


def draw_clean(
    member: Member, train: Split, classes: int, spc: int, validation: bool = False
) -> tuple[CleanSet, Int[Array, " n"]]:
    """The defender's clean rows of a member, and their indices in the training set.

    Args:
      member: its key draws; its ``spc`` is passed on.
      train: all training rows.
      classes: number of classes.
      spc: clean samples per class, static.
      validation: whether the first ranks are kept for validation.
    """
    index, role = clean_subset.draw(stream(member.key, Stream.CLEAN), train.labels, classes, spc, validation)
    return CleanSet(train.images[index], train.labels[index], role, member.spc), index


def defend_member(model: Model, attack: Attack, defense: Defense, spc: int, *, keep: bool = False) -> Callable[..., DefenseRun]:
    """Defend one trained member and measure it: ``f(subject: Subject, data: Data) -> DefenseRun``.

    Args:
      model: the network of the members.
      attack: applies its trigger to test rows, and to clean rows for defenses that declare the need.
      defense: what runs; it sees only the fields of the view that it names.
      spc: clean samples per class, static: it sets the size of the clean set. Ignored by data-free defenses, which draw nothing.
      keep: return the defended variables too.
    """
    evaluate = evaluator(model, attack)

    @jax.jit
    def draw(member: Member, trigger: Any, data: Data) -> tuple[CleanSet, Array | None]:
        clean, index = draw_clean(member, data.train, model.spec.classes, spc, defense.validation)
        triggered = None
        if "triggered" in defense.needs:
            copies = stream(member.key, Stream.TRIGGER)
            if data.triggered is not None:
                triggered = data.triggered[index]
            else:
                triggered = apply_trigger(attack, trigger, copies, clean.images)
        return clean, triggered

    def run(subject: Subject, data: Data) -> DefenseRun:
        member, variables, trigger = subject
        copies = stream(member.key, Stream.TRIGGER)
        view = DefenderView(variables)
        if defense.needs & {"clean", "triggered"}:
            clean, triggered = draw(member, trigger, data)
            view = view._replace(clean=clean, triggered=triggered)
        if "test_accuracy" in defense.needs:
            before = evaluate(variables, data.test, trigger, copies)
            view = view._replace(test_accuracy=before.correct / before.clean)
        defended = defense.defend(stream(member.key, Stream.DEFENSE), view, member.hyper)
        counts = evaluate(defended.variables, data.test, trigger, copies)
        ok = jax.jit(finite)(defended.variables)
        return DefenseRun(defended if keep else defended._replace(variables={}), counts, ok)

    return run
