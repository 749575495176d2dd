"""The defended network and the triggered images of a member, made again from its record.

Records store neither: the same settings, keys and images make them again.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.table import IMAGES_ONLY
from bdjax.errors import UserError
from bdjax.keys import Stream, member_key, root, stream
from bdjax.models import PRECISIONS
from bdjax.population import Execution, adapt, members, recorded_execution, resolve, run, stack, take
from bdjax.results.as_recorded import method
from bdjax.results.member import Trained
from bdjax.store import hashing, provenance
from bdjax.store.rows import Row, measured
from bdjax.sweep import build, editions, imported
from bdjax.sweep.cell import Point
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, Subject, apply_trigger_to_all, defend_member, stage, trigger_form
from bdjax.types import Array, Attack, Dataset, Defense, Model, Recipe, Triggered, Variables


class DefendedMember(NamedTuple):
    """A defended network, made again."""

    variables: Variables  # on the host
    measured: Row  # the metric columns of its record


def defend(trained: Trained, model: Model, dataset: Dataset, folder: str | None = None) -> DefendedMember:
    """Run the defense of the record again, from the same key: the networks that defenses return are not stored.

    On the device and with the versions of the record they are the same; elsewhere they may differ by float error.

    Args:
      trained: a member found by the record of a defense.
      model: its network.
      dataset: the images its record was made with.
      folder: where the network was imported to, if it was.

    Raises:
      UserError: other images, or a method's file or an import folder that changed since.
    """
    row, config = trained.row, json.loads(trained.row["config"])
    model, defense, execution = prepared(row, model)
    hyper = build.stack_hyper(defense, [Point(row["seed"], row["ratio"], json.loads(row["hyper"]))])
    rows, spc = len(dataset.train.labels), row["spc"] or 0
    stacked, _ = members([row["seed"]], [row["ratio"]], rows, root_number=config["root"], spc=spc)
    attack, data = staged(row, dataset, folder)
    subject = Subject(
        stacked._replace(hyper=hyper),
        *stack([(trained.variables, trigger_of(trained, attack, dataset, data))]),
    )
    found = take(jax.device_get(run(defend_member(model, attack, defense, spc, keep=True), subject, (data,), execution)), 0)
    before = {name: row[f"{name}_before"] for name in ("acc", "asr", "ra", "one_class")}
    return DefendedMember(found.defended.variables, measured(found.counts, before))


def _execution(row: Row, model: Model) -> Execution:
    """That of the record, for one member; what is fast on one kind of device may be very slow on another."""
    if row["device"] != provenance.device():
        return resolve({"chunk": 0, "devices": 1}, model)
    return resolve(recorded_execution(json.loads(row["execution"]))._replace(chunk=0, devices=1), model)


def triggered(trained: Trained, dataset: Dataset, folder: str | None = None) -> Triggered:
    """The triggered test images that count for ASR.

    Args:
      trained: a member.
      dataset: the test images that its record was measured on.
      folder: where the network was imported to, if it was.

    Raises:
      UserError: the attack is known only by images that were imported, and the folder is not given; other images, or an attack's
        file or an import folder that changed since.
    """
    config = json.loads(trained.row["config"])
    attack, data = staged(trained.row, dataset, folder)
    images = data.test.triggered
    if images is None:
        key = stream(member_key(root(config["root"]), trained.row["seed"]), Stream.TRIGGER)
        images = apply_trigger_to_all(attack, trigger_of(trained, attack, dataset, data), key, dataset.test.images)
    found = counted(data.test, images)
    if attack.triggered is None:
        return found
    given = attack.triggered()
    return found._replace(index=np.asarray(given.index)[found.index].astype(np.int64), rows=given.rows)


def counted(test: EvalSet, images: Array | np.ndarray) -> Triggered:
    """The triggered test images that count for ASR: those whose attack label is not their true one.

    Args:
      test: labels and attack labels.
      images: u8[m h w c], its triggered images.

    Returns:
      The images on the host; ``index`` counts the rows of ``images``.
    """
    truth, goals = np.asarray(test.labels if test.truth is None else test.truth), np.asarray(test.attack_labels)
    index = np.flatnonzero(goals != truth)
    return Triggered(np.asarray(images)[index], truth[index], goals[index], index.astype(np.int64), len(truth))


def images_of(row: Row, dataset: str | None = None, data_dir: str | None = None) -> Dataset:
    """The images of a record, read again; ``dataset`` is the path of a user's own, whose name alone does not find it."""
    from bdjax.data import load

    return load(dataset or row["dataset"], data_dir, train_images=row["train_images"], test_images=row["test_images"])


def same_images(row: Row, dataset: Dataset) -> None:
    """Raise :class:`UserError` if these are not the images of the record."""
    if dataset.digest != row["data_digest"]:
        raise UserError(
            f"these images of {row['dataset']} are not those of the record (sha256 {dataset.digest[:12]}, "
            f"there {row['data_digest'][:12]})"
        )


def prepared(row: Row, model: Model) -> tuple[Model, Defense, Execution]:
    """The network of a record as its execution wants it, the defense of the record, and that execution for one member.

    Raises:
      UserError: another edition of a method, or the defense's file is not here, or was edited since.
    """
    from bdjax.defenses.table import DEFENSES

    editions.same(row, "the defended network")
    config = json.loads(row["config"])
    settings, execution = config["defense"], _execution(row, model)
    model = adapt(model.rebuild(dtype=PRECISIONS[config["model"]["precision"]]), execution)
    return model, method("defense", settings, DEFENSES)(model, settings["config"], profile=config["profile"]), execution


def staged(row: Row, dataset: Dataset, folder: str | None) -> tuple[Attack, Data]:
    """The attack of a record and its data on the device; ``folder`` is where the network was imported to, if it was.

    Raises:
      UserError: another edition of the attack, other images, or its file or import folder is not here or changed.
    """
    from bdjax.attacks.table import ATTACKS

    config = json.loads(row["config"])
    settings = config["attack"]
    alone = {key: value for key, value in config.items() if key not in ("model", "defense")}
    editions.same({**row, "config": hashing.canonical(alone)}, "the trigger")
    same_images(row, dataset)
    if settings["name"] in IMAGES_ONLY:
        if folder is None:
            raise UserError(
                "the attack of this network is known only by the images of its import folder: name it with --imported"
            )
        if imported.digest(folder) != config["imported"]:
            raise UserError(f"{folder} is not what this network was imported from: its contents are others")
    attack = method("attack", settings, {**ATTACKS, **imported.attacks(folder)})(
        dataset.spec, settings["config"], profile=config["profile"]
    )
    attack = attack._replace(recipe=Recipe(**config["recipe"]))
    return attack, stage(attack, dataset, root(config["root"]))


def trigger_of(trained: Trained, attack: Attack, dataset: Dataset, data: Data) -> Any:
    """The trigger of a trained member as its attack takes it.

    Args:
      trained: a member.
      attack: that of its record.
      dataset: images of the record's data set; only facts are read.
      data: the same on the device.
    """
    form = trigger_form(attack, dataset, data)
    return jax.tree.unflatten(jax.tree.structure(form), [jnp.asarray(leaf) for leaf in trained.trigger])
