"""What a sweep asks of a folder of imported networks: its contents, and whether a grid or a data set fits them."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.attacks.stored import Config
from bdjax.attacks.table import IMAGES_ONLY
from bdjax.errors import UserError
from bdjax.store.hashing import array_digest
from bdjax.store.import_folder import Import, load
from bdjax.types import Attack, DataSpec, Triggered


def opened(path: str) -> Import:
    """The contents of an import folder but for what only an export needs, kept while its manifest stays the same.

    Raises:
      UserError: no such folder, a damaged one, or one that does not tell a poison ratio.
    """
    return _opened(*_stamp(path))


def _stamp(path: str) -> tuple[str, int]:
    manifest = Path(path) / "manifest.json"
    return str(Path(path).resolve()), manifest.stat().st_mtime_ns if manifest.is_file() else 0


@functools.lru_cache(maxsize=2)  # a folder of full VGGs holds gigabytes
def _opened(path: str, stamp: int) -> Import:
    found = load(path, kept=False)
    unknown = [seed for seed, ratio in found.points if ratio is None]
    if unknown:
        raise UserError(
            f"{path} does not tell the poison ratio of seed {unknown[0]}, which records need; import it again with --poison-ratio"
        )
    return found


def digest(path: str) -> str:
    """sha256 over what of an import folder decides results."""
    return _digest(*_stamp(path))


@functools.lru_cache(maxsize=8)
def _digest(path: str, stamp: int) -> str:
    return _opened(path, stamp).digest


def check(found: Import, facts: DataSpec, path: str) -> None:
    """Refuse a data set whose images or classes are not those of imported networks.

    Raises:
      UserError: they are not.
    """
    if found.classes != facts.classes or tuple(found.image_shape) != tuple(facts.image_shape):
        ours, theirs = ("x".join(map(str, shape)) for shape in (facts.image_shape, found.image_shape))
        raise UserError(
            f"{facts.name} has {facts.classes} classes of {ours} images; the networks in {path} were imported for "
            f"{found.classes} classes of {theirs}"
        )


def attacks(path: str | None) -> Mapping[str, Callable[..., Attack]]:
    """The factories of the attacks that an import folder itself brings, by name: that of its triggered images.

    Args:
      path: the folder; None: there is none, and no such attack.
    """
    if path is None:
        return {}
    return {name: functools.partial(_made, path, name) for name in IMAGES_ONLY}


def _made(path: str, name: str, *arguments: Any, **settings: Any) -> Attack:
    make = IMAGES_ONLY[name](_config(*_stamp(path)), functools.partial(stored_images, path), path)
    return make(*arguments, **settings)


def stored_images(path: str) -> Triggered:
    """The triggered test images of an import folder.

    Raises:
      UserError: there are none.
    """
    found = opened(path).triggered
    if found is None:
        raise UserError(f"{path} holds no triggered test images: name the attack whose trigger is to be used with --attack")
    return found


def check_images(path: str, facts: DataSpec) -> None:
    """Refuse stored triggered images of another shape or with labels that are no classes of the data set.

    Raises:
      UserError: they are not of the data set, or there are none.
    """
    images = stored_images(path)
    if images.images.shape[1:] != tuple(facts.image_shape):
        given = "x".join(map(str, images.images.shape[1:]))
        raise UserError(f"the triggered images of {path} are {given}; {facts.name} has {'x'.join(map(str, facts.image_shape))}")
    for name, labels in (("labels", images.labels), ("attack labels", images.attack_labels)):
        found = np.asarray(labels)
        if found.size and not 0 <= found.min() <= found.max() < facts.classes:
            raise UserError(
                f"the {name} of the triggered images of {path} lie in {found.min()} … {found.max()}; "
                f"{facts.name} has the classes 0 … {facts.classes - 1}"
            )


@functools.lru_cache(maxsize=8)
def _config(path: str, stamp: int) -> Config:
    """What a record says of the attack behind the stored images."""
    images, labels, attack_labels, *_ = stored_images(path)
    targets = np.unique(np.asarray(attack_labels))
    return Config(array_digest([images, labels, attack_labels]), int(targets[0]) if len(targets) == 1 else None)


def network(path: str, seed: int, ratio: float) -> Any:
    """The variables of one imported network, host arrays."""
    found = opened(path)
    return found.variables[found.network[found.points.index((seed, ratio))]]
