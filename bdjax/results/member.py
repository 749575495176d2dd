"""One trained member of a folder of results, found by what its record says, with its test images."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.stored import STORED, stored
from bdjax.errors import UserError
from bdjax.keys import Stream, member_key, root, stream
from bdjax.models import PRECISIONS, by_name
from bdjax.plugins.load import factory, source_digest, spelled
from bdjax.population import Execution, adapt, members, resolve, run
from bdjax.store import checkpoints, hashing, location, provenance, records
from bdjax.store.import_folder import Triggered
from bdjax.store.location import Location
from bdjax.store.rows import Row, measured, one
from bdjax.sweep import build, editions, imported
from bdjax.train.experiment import Data, Subject, apply_trigger_to_all, defend_member, stage, stage_stored, trigger_form
from bdjax.types import Attack, Dataset, Defense, Model, Recipe, Variables

# What can tell the networks of a folder apart.
FACTS = ("dataset", "model", "width", "attack", "defense", "spc", "hyper", "seed", "ratio", "profile", "train_images", "cell")


class Trained(NamedTuple):
    """A trained member on the host, as it was before any defense."""

    row: Row  # the record it was asked for by: its own, or that of its repair
    variables: Variables
    trigger: tuple[np.ndarray, ...]  # leaves


class DefendedMember(NamedTuple):
    """A repaired network, made again."""

    variables: Variables  # on the host
    measured: Row  # the metric columns of its record


def find(out: "str | Location", wanted: Mapping[str, Any]) -> Trained:
    """The one network of a folder of results that matches.

    Args:
      out: folder of a run.
      wanted: as of :func:`record`.

    Raises:
      UserError: none matches, or several do; the facts in which they differ are named. Or its weights are gone.
    """
    return held(location.locate(out), record(out, wanted))


def record(out: "str | Location", wanted: Mapping[str, Any], statuses: Sequence[str] = ("ok",)) -> Row:
    """The one record of a folder of results that matches.

    Args:
      out: folder of a run.
      wanted: {fact: value} of :data:`FACTS`; None matches anything, but ``defense`` is "none" unless it is given.
      statuses: a record with another one does not match.

    Raises:
      UserError: none matches, or several do; the facts in which they differ are named.
    """
    folder = location.locate(out)
    if not location.is_folder(folder):
        raise UserError(f"{folder} is no folder of results; write one with: bdjax run --out {folder}")
    given = {"defense": "none", **{fact: value for fact, value in wanted.items() if value is not None}}
    fine = [row for row in records.read_rows(folder) if row["status"] in statuses]
    for kind in ("attack", "defense"):
        if kind in given:
            given[kind] = spelled(given[kind], sorted({row[kind] for row in fine}), f"--{kind}")
    found = [row for row in fine if all(row[fact] == value for fact, value in given.items())]
    if len(found) != 1:
        asked = ", ".join(f"{fact} {value}" for fact, value in given.items())
        rest = found or fine
        told = "; ".join(f"{fact}: {_listed(values)}" for fact in FACTS if len(values := {row[fact] for row in rest}) > 1)
        count = str(len(found)) if found else "no"
        raise UserError(f"{count} networks of {folder} match {asked}; it holds {told or f'{len(rest)} records'}")
    return found[0]


def held(folder: Location, row: Row) -> Trained:
    """The trained member behind a record of its own or of its repair.

    Raises:
      UserError: its weights are gone.
    """
    config = {key: value for key, value in json.loads(row["config"]).items() if key not in ("defense", "spc")}
    cell, member = hashing.short_hash(config), build.member_hash(build.Point(row["seed"], row["ratio"], {}))
    places = checkpoints.find(folder, cell)
    if member not in places:
        raise UserError(f"the weights of this member are no longer in {folder / 'models' / cell}; the same run makes them")
    there = checkpoints.load(folder, cell, [places[member]])
    variables, trigger = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (there.variables, there.trigger))
    return Trained(row, variables, trigger)


def _listed(values: set[Any]) -> str:
    told = sorted(map(str, values))
    return ", ".join(told[:8]) + (" …" if len(told) > 8 else "")


def network(trained: Trained, dataset: str | None = None) -> Model:
    """The network of a trained member.

    Args:
      trained: a member.
      dataset: data set of the member where its record's name does not find it: the path of a user's own.

    Raises:
      UserError: the data set is a user's own and ``dataset`` does not say where it lies.
    """
    from bdjax.data import DATASETS, spec

    told, name = json.loads(trained.row["config"])["model"], trained.row["dataset"]
    if dataset is None and name not in DATASETS:
        raise UserError(f"{name} is a data set of the user's own: name its folder with --dataset")
    facts = spec(dataset or name)
    return by_name(told["name"], facts, width=told["width"], depth=told["depth"])


def repaired(trained: Trained, model: Model, dataset: Dataset, folder: str | None = None) -> DefendedMember:
    """The variables after the defense of the record, which runs again from the same key: records do not hold repaired networks.

    On the device and with the versions of the record they are the same; elsewhere they may differ by float error.

    Args:
      trained: a member found by the record of a repair.
      model: its network.
      dataset: the images its record was made with.
      folder: where the network was imported to, if it was.

    Raises:
      UserError: other images, or a method's file or an import folder that changed since.
    """
    row, config = trained.row, json.loads(trained.row["config"])
    model, defense, execution = defended(row, model)
    hyper = build.stack_hyper(defense, [build.Point(row["seed"], row["ratio"], json.loads(row["hyper"]))])
    rows, spc = len(dataset.train.labels), row["spc"] or 0
    stack, _ = members([row["seed"]], [row["ratio"]], rows, root_number=config["root"], spc=spc)
    attack, data = staged(row, dataset, folder)
    subject = Subject(
        stack._replace(hyper=hyper),
        *jax.tree.map(lambda x: x[None], (trained.variables, trigger_of(trained, attack, dataset, data))),
    )
    found = run(defend_member(model, attack, defense, spc, keep=True), subject, (data,), execution)
    before = {name: row[f"{name}_before"] for name in ("acc", "asr", "ra", "one_class")}
    return DefendedMember(one(found.defended.variables, 0), measured(one(found.counts, 0), before))


def _execution(row: Row, model: Model) -> Execution:
    """That of the record, for one member; what is fast on one kind of device may be very slow on another."""
    if row["device"] != provenance.device():
        return resolve({"chunk": 0, "devices": 1}, model.name)
    return resolve(Execution(**json.loads(row["execution"]))._replace(chunk=0, devices=1), model.name)


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
    truth = np.asarray(data.test.labels if data.test.truth is None else data.test.truth)
    goals = np.asarray(data.test.attack_labels)
    counted = np.flatnonzero(goals != truth)
    places, rows = np.arange(len(truth)), len(dataset.test.labels)
    if config["attack"]["name"] == STORED:
        stored_images = imported.opened(str(folder)).triggered
        assert stored_images is not None  # it was staged
        places, rows = stored_images.index, stored_images.rows
    return Triggered(np.asarray(images)[counted], truth[counted], goals[counted], places[counted].astype(np.int64), rows)


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


def defended(row: Row, model: Model) -> tuple[Model, Defense, Execution]:
    """The network of a record as its execution wants it, the defense of the record, and that execution for one member.

    Raises:
      UserError: another edition of a method, or the defense's file is not here, or was edited since.
    """
    from bdjax.defenses.table import DEFENSES

    editions.same(row, "the repaired network")
    config = json.loads(row["config"])
    told, execution = config["defense"], _execution(row, model)
    model = adapt(model.rebuild(dtype=PRECISIONS[config["model"]["precision"]]), execution)
    return model, method("defense", told, DEFENSES)(model, told["config"], profile=config["profile"]), execution


def staged(row: Row, dataset: Dataset, folder: str | None) -> tuple[Attack, Data]:
    """The attack of a record and its data on the device; ``folder`` is where the network was imported to, if it was.

    Raises:
      UserError: another edition of the attack, other images, or its file or import folder is not here or changed.
    """
    from bdjax.attacks.table import ATTACKS

    config = json.loads(row["config"])
    told = config["attack"]
    alone = {key: value for key, value in config.items() if key not in ("model", "defense")}
    editions.same({**row, "config": hashing.canonical(alone)}, "the trigger")
    same_images(row, dataset)
    if told["name"] == STORED:
        if folder is None:
            raise UserError(
                "the attack of this network is known only by the images of its import folder: name it with --imported"
            )
        if imported.digest(folder) != config["imported"]:
            raise UserError(f"{folder} is not what this network was imported from: its contents are others")
        return stored(imported.stored_config(folder)), stage_stored(dataset, *imported.stored_images(folder))
    attack = method("attack", told, ATTACKS)(dataset.spec, told["config"], profile=config["profile"])
    attack = attack._replace(recipe=Recipe(**config["recipe"]))
    return attack, stage(attack, dataset, root(config["root"]))


def method(kind: str, told: Mapping[str, Any], table: Mapping[str, Any]) -> Any:
    """The factory of a method of a record, from the very file that it was run from.

    Args:
      kind: "attack" or "defense", for messages.
      told: what the record says of the method.
      table: built-in factories.

    Raises:
      UserError: the file is not here, or was edited since.
    """
    make = factory(kind, told["name"], table)
    if source_digest(told["name"]) != told.get("source"):
        raise UserError(f"{told['name']} was edited since the record was made; the repair or trigger would be another")
    return make


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
