"""A user's own data set is a folder, of one of three kinds; its path stands wherever the name of a data set does.

* Images: ``train/<class>/<image>`` and ``test/<class>/<image>`` (:mod:`bdjax.data.image_folder`); numbered class folders in the
  order of their numbers.
* Arrays: ``train_images.npy``, ``train_labels.npy``, ``test_images.npy``, ``test_labels.npy`` (:mod:`bdjax.data.array_folder`).
* The files of a known data set, as they are distributed (:mod:`bdjax.data.unpacked`). A complete copy without a ``dataset.json``
  is that data set; a part of one, or one with settings, is a data set of its own.

Each may hold a ``dataset.json`` (:mod:`bdjax.data.settings`).
"""

from pathlib import Path
from typing import NamedTuple

from bdjax.data import archives, array_folder, image_folder, own, unpacked
from bdjax.data.array_folder import ARRAYS
from bdjax.data.settings import SETTINGS
from bdjax.data.source import SPLITS, Layout, Listing, Source
from bdjax.data.table import DATASETS
from bdjax.errors import UserError, quoted
from bdjax.types import Dataset, DataSpec

TAKEN = tuple(DATASETS)  # names that a folder must not have


class Kind(NamedTuple):
    """What a folder holds."""

    arrays: bool = False  # arrays; else images, or what the other fields say
    place: Path | None = None  # where in the folder the files of the known data set lie
    layouts: tuple[tuple[Source, Layout], ...] = ()  # the known data sets whose files these may be
    packed: str = ""  # the known data set whose archives these are


def kind(path: Path) -> Kind:
    """Return what a folder (or an archive of a known data set) holds.

    Raises:
      UserError: it holds no data set, or several, or a part of one; with all that is accepted.
    """
    found = unpacked.layouts_in(path, DATASETS.values())
    places = list(dict.fromkeys(place for _, _, place in found))
    if len(places) > 1:
        shown = ", ".join(str(place.relative_to(path)) for place in places)
        raise UserError(f"{path} holds several data sets ({shown}); name one of them: {quoted('--dataset', places[0])}")
    if found:
        return Kind(place=places[0], layouts=tuple((source, layout) for source, layout, _ in found))
    if path.is_file():
        raise UserError(f"{path} is a file, and no archive whose layout is known; unpack it and name the folder. {_accepted()}")
    arrays = [file for file in ARRAYS if (path / file).is_file()]
    images = image_folder.splits(path)
    if images and arrays:
        folders = ", ".join(images.values())
        raise UserError(f"{path} holds folders ({folders}) and arrays ({', '.join(arrays)}); only one kind is allowed.")
    if len(images) == len(SPLITS):
        return Kind()
    if len(arrays) == len(ARRAYS):
        return Kind(arrays=True)
    for name, source in DATASETS.items():
        if source.rows is None and archives.complete(source, path):
            return Kind(place=path, packed=name)
    if images:
        (split,) = images
        other = next(name for name in SPLITS if name != split)
        raise UserError(
            f"{path} holds {images[split]}/ and no {other}/: a data set of images needs {image_folder.NEEDS}, with the same "
            f"classes in both; move a part of the images of each class into {path / other}/<class>/."
        )
    there = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(there[:5]) + (f" and {len(there) - 5:,} more" if len(there) > 5 else "")
    raise UserError(f"{path} holds no data set: {_accepted()} {f'Found there: {shown}.' if there else 'The folder is empty.'}")


def known_as(path: Path) -> tuple[str, Path] | None:
    """Return (name, data directory) where a folder is a complete copy of a known data set and has no settings of its own."""
    found = kind(path)
    if found.place is None or _settings_of(path, found.place) is not None:
        return None
    if found.packed:
        return found.packed, path
    for source, layout in found.layouts:
        if unpacked.complete_copy(source, layout, unpacked.listed(layout, found.place)) is not None:
            return source.spec.name, found.place if found.place.is_dir() else found.place.parent
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
    if found.arrays:
        return array_folder.facts(path, TAKEN)
    return own.facts(_listing(path, found), root, TAKEN)


def read(path: Path, root: Path) -> Dataset:
    """Return the data set in a folder, memory-mapped; arguments and errors of :func:`facts`."""
    found = kind(path)
    if found.arrays:
        return array_folder.read(path, TAKEN)
    return own.read(_listing(path, found), root, TAKEN)


def prepare(path: Path, root: Path) -> Path:
    """Decode the images of a folder into the cache and return where; :class:`UserError` for arrays, which need none."""
    found = kind(path)
    if found.arrays:
        raise UserError(f"{path} holds arrays: there is nothing to prepare.")
    return own.prepare(_listing(path, found), root, TAKEN)


def _settings_of(path: Path, place: Path) -> Path | None:
    """Return the folder whose dataset.json counts: the one that was named, or else the one in it that holds the files."""
    return next((folder for folder in (path, place) if (folder / SETTINGS).is_file()), None)


def _listing(path: Path, found: Kind) -> Listing:
    """Return the images of a folder that is no complete copy of a known data set, or has settings."""
    if found.packed:
        raise UserError(f"{path} holds archives of {found.packed}, which {SETTINGS} cannot change; unpack them, or remove it.")
    if not found.layouts or found.place is None:
        return image_folder.scan(path)
    source, layout = found.layouts[0]
    listing = unpacked.listed(layout, found.place)
    home = _settings_of(path, found.place)
    listing = listing._replace(home=home or path, spare=f"{source.spec.name}-part")
    if home is not None or listing.note:
        return listing
    names = " or ".join(source.spec.name for source, _ in found.layouts)
    counts = " and ".join(f"{len(listing.rows[split]):,} {split}" for split in SPLITS)
    note = f"{found.place}: it has the layout of {names} and other numbers of images ({counts}), so it is a data set of its own"
    return listing._replace(note=note)


def _accepted() -> str:
    needs = dict.fromkeys(layout.needs for source in DATASETS.values() for layout in source.layouts)
    return f"needed are {image_folder.NEEDS}; or {', '.join(ARRAYS)}; or {'; or '.join(needs)}."
