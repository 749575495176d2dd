"""One trained member of a folder of results, found by what its record says, with its test images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.stored import STORED, stored
from bdjax.errors import UserError
from bdjax.evaluation import stamp_images
from bdjax.experiment import CHUNK, Data, Subject, defend_member, stage, stage_stored
from bdjax.keys import Stream, member_key, root, stream
from bdjax.models import PRECISIONS, by_name
from bdjax.population import adapt, default_execution, members, run
from bdjax.sweep import build, imported, models, store
from bdjax.sweep.plugins import factory
from bdjax.sweep.rows import Row
from bdjax.types import Attack, Dataset, Model, Variables

# What can tell the networks of a folder apart.
FACTS = ("dataset", "model", "width", "attack", "defense", "spc", "hyper", "seed", "ratio", "profile", "train_images", "cell")


class Trained(NamedTuple):
    """A trained member on the host, as it was before any defense."""

    row: Row  # the record it was asked for by: its own, or that of its repair
    variables: Variables
    trigger: tuple[np.ndarray, ...]  # leaves


def find(out: str | Path, wanted: Mapping[str, Any]) -> Trained:
    """The one network of a folder of results that matches.

    Args:
      out: folder of a run.
      wanted: {fact: value} of :data:`FACTS`; None matches anything, but ``defense`` is "none" unless it is given.

    Raises:
      UserError: none matches, or several do; the facts in which they differ are named.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of results; write one with: bdjax run --out {folder}")
    given = {"defense": "none", **{fact: value for fact, value in wanted.items() if value is not None}}
    fine = [row for row in store.read_rows(folder) if row["status"] == "ok"]
    found = [row for row in fine if all(row[fact] == value for fact, value in given.items())]
    if len(found) != 1:
        asked = ", ".join(f"{fact} {value}" for fact, value in given.items())
        rest = found or fine
        told = "; ".join(f"{fact}: {_listed(values)}" for fact in FACTS if len(values := {row[fact] for row in rest}) > 1)
        count = str(len(found)) if found else "no"
        raise UserError(f"{count} networks of {folder} match {asked}; it holds {told or f'{len(rest)} records'}")
    row = found[0]
    config = {key: value for key, value in json.loads(row["config"]).items() if key not in ("defense", "spc")}
    cell, member = build.short_hash(config), build.member_hash(build.Point(row["seed"], row["ratio"], {}))
    places = models.find(folder, cell)
    if member not in places:
        raise UserError(f"the weights of this member are no longer in {folder / 'models' / cell}; the same run makes them")
    held = models.load(folder, cell, [places[member]])
    variables, trigger = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (held.variables, held.trigger))
    return Trained(row, variables, trigger)


def _listed(values: set[Any]) -> str:
    told = sorted(map(str, values))
    return ", ".join(told[:8]) + (" …" if len(told) > 8 else "")


def network(trained: Trained, dataset: str | None = None) -> Model:
    """The network of a trained member.

    Args:
      trained: a member.
      dataset: data set of the member where its record's name does not find it: the path of a user's own.
    """
    from bdjax.data import spec

    told = json.loads(trained.row["config"])["model"]
    facts = spec(dataset or trained.row["dataset"])
    return by_name(told["name"], facts, width=told["width"], depth=told["depth"])


def repaired(trained: Trained, model: Model, dataset: Dataset, folder: str | None = None) -> Variables:
    """The variables after the defense of the record, which runs again from the same key: records do not hold repaired networks.

    Args:
      trained: a member found by the record of a repair.
      model: its network.
      dataset: the images its record was made with.
      folder: where the network was imported to, if it was.
    """
    from bdjax.defenses import DEFENSES

    row, config = trained.row, json.loads(trained.row["config"])
    told = config["defense"]
    model = adapt(model.rebuild(dtype=PRECISIONS[config["model"]["precision"]]), default_execution(model=model.name))
    defense = factory("defense", told["name"], DEFENSES)(model, told["config"], profile=config["profile"])
    hyper = build.stack_hyper(defense, [build.Point(row["seed"], row["ratio"], json.loads(row["hyper"]))])
    rows, spc = len(dataset.train.labels), row["spc"] or 0
    stack, _ = members([row["seed"]], [row["ratio"]], rows, root_number=config["root"], spc=spc)
    attack, data = _staged(config, dataset, folder)
    subject = Subject(
        stack._replace(hyper=hyper), *jax.tree.map(lambda x: x[None], (trained.variables, _trigger(trained, attack, data)))
    )
    found = run(defend_member(model, attack, defense, spc, keep=True), subject, (data,), default_execution(model=model.name))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], found.repair.variables)


def triggered(
    trained: Trained, dataset: Dataset, folder: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The triggered test images that count for ASR: (images u8[m h w c], true labels, attack labels, indices; i32[m] each).

    Args:
      trained: a member.
      dataset: the test images that its record was measured on.
      folder: where the network was imported to, if it was.

    Raises:
      UserError: the attack is known only by images that were imported, and the folder is not given.
    """
    config = json.loads(trained.row["config"])
    attack, data = _staged(config, dataset, folder)
    images = data.test.triggered
    if images is None:
        key = stream(member_key(root(config["root"]), trained.row["seed"]), Stream.TRIGGER)
        trigger = _trigger(trained, attack, data)
        stamp = jax.jit(lambda rows: stamp_images(attack, trigger, key, rows))
        images = jnp.concatenate([stamp(data.test.images[i : i + CHUNK]) for i in range(0, len(data.test.labels), CHUNK)])
    truth = np.asarray(data.test.labels if data.test.truth is None else data.test.truth)
    goals = np.asarray(data.test.attack_labels)
    counted = np.flatnonzero(goals != truth).astype(np.int32)
    return np.asarray(images)[counted], truth[counted], goals[counted], counted


def _staged(config: Mapping[str, Any], dataset: Dataset, folder: str | None) -> tuple[Attack, Data]:
    """The attack of a record and its data on the device."""
    from bdjax.attacks import ATTACKS

    told = config["attack"]
    if told["name"] == STORED:
        if folder is None:
            raise UserError(
                "the attack of this network is known only by the images of its import folder: name it with --imported"
            )
        if imported.digest(folder) != config["imported"]:
            raise UserError(f"{folder} is not what this network was imported from: its contents are others")
        return stored(imported.stored_config(folder)), stage_stored(dataset, *imported.stored_images(folder))
    attack = factory("attack", told["name"], ATTACKS)(dataset.spec, told["config"], profile=config["profile"])
    return attack, stage(attack, dataset, root(config["root"]))


def _trigger(trained: Trained, attack: Attack, data: Data) -> Any:
    form = jax.eval_shape(attack.init, root(0), data.assets)
    return jax.tree.unflatten(jax.tree.structure(form), [jnp.asarray(leaf) for leaf in trained.trigger])
