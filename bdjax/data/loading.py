"""From a name, or a folder of the user's own, to host arrays: the cache where it is valid, else the archives."""

import os
from pathlib import Path

from bdjax.data import archives, folder, prepared
from bdjax.data.cache import cache_root
from bdjax.data.download import fetch
from bdjax.data.reduce import reduced
from bdjax.data.source import SPLITS, Source, check_facts, digest
from bdjax.data.table import DATASETS
from bdjax.errors import UserError, choose, folder_like, nearest, unknown
from bdjax.types import Dataset, DataSpec

VIAS = ("archive", "tfds")
PathLike = str | os.PathLike[str]


def known(name: str) -> str:
    """Return ``name`` if it is a data set: a name of ``DATASETS``, or the path of an existing folder that holds one.

    Raises:
      UserError: it is neither; with the nearest name, or what a folder has to hold.
    """
    if name not in DATASETS:
        folder.kind(_folder(name))
    return name


def spec(name: str) -> DataSpec:
    """Return the static facts of a data set, without reading it (a folder of images is read once, for its mean and deviation).

    Args:
      name: of ``DATASETS``, or the path of a folder: see :func:`load`.

    Raises:
      UserError: an unknown name, or a folder that holds no data set.
    """
    name, _ = _meant(name, None)
    if name in DATASETS:
        return DATASETS[name].spec
    return folder.facts(_folder(name), cache_root())[0]


def load(
    name: str,
    data_dir: PathLike | None = None,
    *,
    train_images: int | None = None,
    test_images: int | None = None,
    via: str = "archive",
    cache: PathLike | None = None,
) -> Dataset:
    """Load a data set as host arrays, memory-mapped from the cache, which is made from the archives on first use.

    Args:
      name: of ``DATASETS``; or the path of a folder with ``train/<class>/<image>`` and ``test/<class>/<image>``, of one that
        :func:`write_arrays` wrote, or of one with the files of a known data set (see :mod:`bdjax.data.folder`). A complete copy
        of a known data set is read as that data set, whatever ``data_dir`` says.
      data_dir: folder that holds the folder of the data set's archives, or that folder itself; None: the environment's
        BDJAX_DATA_DIR. Its archives, or an unpacked copy, are read only if the cache does not hold them, but they say which
        edition is meant. Bundled data and folders have no archives.
      train_images: size of a reduced training set, balanced by class, the same for every seed and in the original order;
        classes <= train_images <= rows. None: all rows.
      test_images: likewise for the test set.
      via: "archive" reads the archives, "tfds" reads them through tensorflow-datasets; the rows are equal.
      cache: folder of the cached arrays; None: BDJAX_CACHE_DIR, XDG_CACHE_HOME/bdjax or ~/.cache/bdjax.

    Returns:
      The data set; ``digest`` is the sha256 over pixels and labels of the rows returned.

    Raises:
      UserError: unknown name, missing, truncated or altered archives, a size out of range, or a cache that cannot be written.
    """
    choose("way to read a data set", via, VIAS)
    root = cache_root(cache)
    name, data_dir = _meant(name, data_dir)
    if name not in DATASETS:
        _refuse_tfds(name, via)
        full = folder.read(_folder(name), root)
    else:
        source = DATASETS[name]
        for split, wanted in zip(SPLITS, (train_images, test_images), strict=True):
            most = max(sum(counts[split]) for counts in prepared.known_counts(source))
            _check_size(name, source.spec, split, most, wanted)
        if source.rows is not None:
            full = _embedded(source, via)
        else:
            splits, total = prepared.read(source, data_dir, via, root)
            full = Dataset(source.spec, splits["train"], splits["test"], total)
    if train_images is None and test_images is None:
        return full
    for split, rows, wanted in zip(SPLITS, (full.train, full.test), (train_images, test_images), strict=True):
        _check_size(name, full.spec, split, len(rows.labels), wanted)
    train = reduced("train", full.train, full.spec.classes, train_images)
    test = reduced("test", full.test, full.spec.classes, test_images)
    return Dataset(full.spec, train, test, digest(train, test))


def sizes(
    name: str,
    *,
    train_images: int | None = None,
    test_images: int | None = None,
    data_dir: PathLike | None = None,
    cache: PathLike | None = None,
) -> tuple[int, int]:
    """Return how many training and test rows :func:`load` would return, without reading any; its arguments and errors.

    Where neither archives nor cache are at hand, the sizes are those of the official edition, so that a run can be planned on
    another machine.
    """
    root = cache_root(cache)
    name, data_dir = _meant(name, data_dir)
    if name not in DATASETS:
        facts, totals = folder.facts(_folder(name), root)
    else:
        source = DATASETS[name]
        facts, edition = source.spec, source.editions[0]
        if source.rows is None:
            found = prepared.edition_of(source, data_dir, "archive", root) or prepared.edition_of(source, data_dir, "tfds", root)
            edition = found[0] if found else edition
        totals = {split: sum(edition.counts[split]) for split in SPLITS}
    for split, wanted in zip(SPLITS, (train_images, test_images), strict=True):
        _check_size(name, facts, split, totals[split], wanted)
    return train_images or totals["train"], test_images or totals["test"]


def prepare(
    name: str, data_dir: PathLike | None = None, *, cache: PathLike | None = None, via: str = "archive", download: bool = False
) -> Path:
    """Check a data set's archives and write its cached arrays, whether or not they exist already.

    Args:
      name: see :func:`load`.
      data_dir: see :func:`load`.
      cache: see :func:`load`.
      via: see :func:`load`.
      download: fetch the official archives, checked by digest, if the data directory (or ``downloads`` in the cache, where none
        is given) does not hold all archives of an edition.

    Returns:
      The folder of the cached arrays.

    Raises:
      UserError: see :func:`load`; a failed download, which names the address and where to put the file; also for data that need
        no preparation.
    """
    choose("way to read a data set", via, VIAS)
    root = cache_root(cache)
    name, data_dir = _meant(name, data_dir)
    if name not in DATASETS:
        _refuse_tfds(name, via)
        return folder.prepare(_folder(name), root)
    source = DATASETS[name]
    if source.rows is not None:
        raise UserError(f"{name} comes with an installed library: there is nothing to prepare.")
    meant = prepared.at_hand(source, data_dir, root)
    if meant is None and download:
        fetch(source, archives.target(source, data_dir, root))
        meant = prepared.at_hand(source, data_dir, root)
    if meant is None:
        raise archives.absent(source, data_dir, root)
    edition, found = meant
    prepared.build(source, edition, found, via, root)
    return prepared.place(source, edition, via, root)


def _meant(name: str, data_dir: PathLike | None) -> tuple[str, PathLike | None]:
    """Return name and data directory, where a path is that of a complete copy of a known data set; else what was given."""
    found = None if name in DATASETS else folder.known_as(_folder(name))
    return found or (name, data_dir)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        beside = folder_like(name)
        if beside is not None and nearest(name, [*DATASETS, beside]) == beside:
            raise UserError(f"dataset {name!r} is no built-in data set and no folder. Did you mean the folder {beside!r}?")
        raise UserError(f"{unknown('dataset', name, DATASETS)} A data set may also be the path of a folder; this is none.")
    return path


def _refuse_tfds(name: str, via: str) -> None:
    if via != "archive":
        raise UserError(f"{name} is a folder and has no archives to read via {via!r}.")


def _embedded(source: Source, via: str) -> Dataset:
    assert source.rows is not None
    if via != "archive":
        raise UserError(f"{source.spec.name} comes with an installed library and has no archives to read via {via!r}.")
    train, test = (check_facts(source, source.editions[0], split, source.rows(split)) for split in SPLITS)
    found = digest(train, test)
    if source.digest is not None and found != source.digest:
        raise UserError(f"{source.spec.name}: the installed library brings other images (sha256 {found[:12]}...) than expected.")
    return Dataset(source.spec, train, test, found)


def _check_size(name: str, facts: DataSpec, split: str, total: int, wanted: int | None) -> None:
    if wanted is not None and not facts.classes <= wanted <= total:
        raise UserError(f"{split}_images is {wanted}; {name} allows {facts.classes} (one per class) to {total} (all rows).")
