"""One trained member of a folder of results, found by the facts of its record."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.models import by_name
from bdjax.plugins.load import spelled
from bdjax.population import take
from bdjax.store import checkpoints, hashing, location, records
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep.cell import Point, member_hash
from bdjax.types import Model, Variables

# The columns of a record in which the networks of a folder may differ.
FACTS = ("dataset", "model", "width", "attack", "defense", "spc", "hyper", "seed", "ratio", "profile", "train_images", "cell")


class Trained(NamedTuple):
    """A trained member on the host, as it was before any defense."""

    row: Row  # the record it was asked for by: its own, or that of its defense
    variables: Variables
    trigger: tuple[np.ndarray, ...]  # leaves


def find(out: "str | Location", wanted: Mapping[str, Any]) -> Trained:
    """The one network of a folder of results that matches.

    Args:
      out: folder of a run.
      wanted: as of :func:`record`.

    Raises:
      UserError: none matches, or several do; the facts in which they differ are named. Or its weights are gone.
    """
    return load(location.locate(out), record(out, wanted))


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
        differing = "; ".join(f"{fact}: {_listed(values)}" for fact in FACTS if len(values := {row[fact] for row in rest}) > 1)
        count = str(len(found)) if found else "no"
        raise UserError(f"{count} networks of {folder} match {asked}; it holds {differing or f'{len(rest)} records'}")
    return found[0]


def load(folder: Location, row: Row) -> Trained:
    """Load the trained member behind a record of its own or of its defense.

    Raises:
      UserError: its weights are gone.
    """
    config = {key: value for key, value in json.loads(row["config"]).items() if key not in ("defense", "spc")}
    cell, member = hashing.short_hash(config), member_hash(Point(row["seed"], row["ratio"], {}))
    places = checkpoints.find(folder, cell)
    if member not in places:
        raise UserError(f"the weights of this member are no longer in {folder / 'models' / cell}; the same run makes them")
    there = checkpoints.load(folder, cell, [places[member]])
    variables, trigger = take((there.variables, there.trigger), 0)
    return Trained(row, variables, trigger)


def _listed(values: set[Any]) -> str:
    texts = sorted(map(str, values))
    return ", ".join(texts[:8]) + (" …" if len(texts) > 8 else "")


def network(trained: Trained, dataset: str | None = None) -> Model:
    """The network of a trained member.

    Args:
      trained: a member.
      dataset: data set of the member where its record's name does not find it: the path of a user's own.

    Raises:
      UserError: the data set is a user's own and ``dataset`` does not give its folder.
    """
    from bdjax.data import DATASETS, spec

    settings, name = json.loads(trained.row["config"])["model"], trained.row["dataset"]
    if dataset is None and name not in DATASETS:
        raise UserError(f"{name} is a data set of the user's own: name its folder with --dataset")
    facts = spec(dataset or name)
    return by_name(settings["name"], facts, width=settings["width"], depth=settings["depth"])
