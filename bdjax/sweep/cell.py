"""The cells of a grid as plain values: what is static about a training and about a defense, and their members."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdjax.store.hashing import short_hash


class TrainCell(NamedTuple):
    """Everything static about the training of one (data set, model, attack)."""

    dataset: str
    train_images: int | None
    test_images: int | None
    model: str
    width: int | None
    attack: str
    attack_config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    profile: str
    target: int
    root: int
    precision: str = "float32"  # of bdjax.models.PRECISIONS
    depth: int | None = None
    imported: str | None = None  # folder of networks that come from elsewhere, instead of training


class DefenseCell(NamedTuple):
    """Everything static about one defense of the members of a training cell; spc is None where no clean data are needed."""

    train: TrainCell
    defense: str
    config: Mapping[str, Any]
    spc: int | None


class Point(NamedTuple):
    """One member of a cell as plain values."""

    seed: int
    ratio: float
    hyper: dict[str, Any]


def member_hash(point: Point) -> str:
    """Content hash of one member of a cell."""
    return short_hash([point.seed, point.ratio, point.hyper])


def set_hash(members: Sequence[str]) -> str:
    """Content hash of several members: the name of the files they share."""
    return short_hash(list(members))
