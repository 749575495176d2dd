"""A user's own data set is a folder, of one of three kinds; its path stands wherever the name of a data set does.

* Images: ``train/<class>/<image>`` and ``test/<class>/<image>`` (:mod:`bdjax.data.image_folder`).
* Arrays: ``train_images.npy``, ``train_labels.npy``, ``test_images.npy``, ``test_labels.npy`` (:mod:`bdjax.data.array_folder`).
* The files of a known data set, as they are distributed (:mod:`bdjax.data.unpacked`). A whole copy without a ``dataset.json`` is
  that data set; a part of one, or one with settings, is a data set of its own.

Each may hold a ``dataset.json`` (:mod:`bdjax.data.settings`).
"""

from pathlib import Path
from typing import NamedTuple

from bdjax.data import archives, array_folder, image_folder, own, unpacked
from bdjax.data.array_folder import ARRAYS
from bdjax.data.settings import SETTINGS
from bdjax.data.source import SPLITS, Layout, Listing
from bdjax.data.table import DATASETS
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec

TAKEN = tuple(DATASETS)  # names that a folder must not have


class Kind(NamedTuple):
    """What a folder holds."""

    name: str  # "images", "arrays", "layout", or "archives" of a known data set
    layout: Layout | None = None
    place: Path | None = None  # where in the folder the files of the layout lie
    sources: tuple[str, ...] = ()  # the known data sets that have this layout, or these archives


def kind(path: Path) -> Kind:
    """Return what a folder (or an archive of a known data set) holds.

    Raises:
      UserError: it holds no data set, or several, or a part of one; with all that is accepted.
    """
    found = unpacked.layouts_in(path, DATASETS.values())
    places = list(dict.fromkeys(place for _, _, place in found))
    if len(places) > 1:
        shown = ", ".join(str(place.relative_to(path)) for place in places)
        raise UserError(f"{path} holds several data sets ({shown}); name one of them, as --dataset {places[0]}.")
    if found:
        return Kind("layout", found[0][1], places[0], tuple(source.spec.name for source, _, _ in found))
    if path.is_file():
        raise UserError(f"{path} is a file, and no archive whose layout is known; unpack it and name the folder. {_accepted()}")
    arrays = [file for file in ARRAYS if (path / file).is_file()]
    images = image_folder.splits(path)
    if images and arrays:
        folders = ", ".join(images.values())
        raise UserError(f"{path} holds folders ({folders}) and arrays ({', '.join(arrays)}); only one kind is allowed.")
    if len(images) == len(SPLITS):
        return Kind("images")
    if len(arrays) == len(ARRAYS):
        return Kind("arrays")
    packed = tuple(source.spec.name for source in DATASETS.values() if archives.complete(source, path) and source.rows is None)
    if packed:
        return Kind("archives", place=path, sources=packed)
    there = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(there[:5]) + (f" and {len(there) - 5:,} more" if len(there) > 5 else "")
    raise UserError(f"{path} holds no data set: {_accepted()} {f'Found there: {shown}.' if there else 'The folder is empty.'}")


def known_as(path: Path) -> tuple[str, Path] | None:
    """Return (name, data directory) where a folder is a whole copy of a known data set and has no settings of its own."""
    found = kind(path)
    if found.place is None or (path.is_dir() and (path / SETTINGS).is_file()) or (found.place / SETTINGS).is_file():
        return None
    if found.layout is None:
        return found.sources[0], path
    listing = _listing(path, found)
    home = found.place if found.place.is_dir() else found.place.parent
    for name in found.sources:
        if unpacked.whole(DATASETS[name], found.layout, listing) is not None:
            return name, home
    return None


def facts(path: Path, root: Path) -> tuple[DataSpec, dict[str, int]]:
    """Return (facts, {split: rows}) of a folder, decoding its images into the cache if that was not done yet.

    Args:
      path: of the folder.
      root: of the cache.

    Raises:
      UserError: the folder holds no data set, or an image or array in it is wrong.
    """
    found = kind(path)
    if found.name == "arrays":
        return array_folder.facts(path, TAKEN)
    return own.facts(_listing(path, found), root, TAKEN)


def read(path: Path, root: Path) -> Dataset:
    """Return the data set in a folder, memory-mapped; arguments and errors of :func:`facts`."""
    found = kind(path)
    if found.name == "arrays":
        return array_folder.read(path, TAKEN)
    return own.read(_listing(path, found), root, TAKEN)


def prepare(path: Path, root: Path) -> Path:
    """Decode the images of a folder into the cache and return where; :class:`UserError` for arrays, which need none."""
    found = kind(path)
    if found.name == "arrays":
        raise UserError(f"{path} holds arrays: there is nothing to prepare.")
    return own.prepare(_listing(path, found), root, TAKEN)


def _listing(path: Path, found: Kind) -> Listing:
    """The images of a folder; a dataset.json in it counts also where the files lie in a folder inside it."""
    if found.name == "archives":
        raise UserError(
            f"{path} holds the archives of {found.sources[0]}, which {SETTINGS} cannot change; unpack them, or remove {SETTINGS}."
        )
    if found.layout is None or found.place is None:
        return image_folder.scan(path)
    listing = unpacked.listed(found.layout, found.place)
    short = [name for name in found.sources if unpacked.whole(DATASETS[name], found.layout, listing) is None]
    if len(short) == len(found.sources) and not listing.note:
        counts = " and ".join(f"{len(listing.rows[split]):,} {split}" for split in SPLITS)
        title = f"{found.place}: it has the layout of {' or '.join(found.sources)}"
        listing = listing._replace(
            note=f"{title}, and not as many images per class ({counts}): it is read as a data set of its own"
        )
    if path.is_dir() and (path / SETTINGS).is_file() and found.place != path:
        inside = found.place.relative_to(path)
        files = tuple(str(inside / file) if file else str(inside) for file in listing.files)
        listing = listing._replace(folder=path, files=files)
    return listing


def _accepted() -> str:
    needs = dict.fromkeys(layout.needs for source in DATASETS.values() for layout in source.layouts)
    return f"needed are {image_folder.NEEDS}; or {', '.join(ARRAYS)}; or {'; or '.join(needs)}."
