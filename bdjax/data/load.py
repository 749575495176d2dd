"""From a name to host arrays: the cache where it holds, the archives where it does not."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax.data import cache as files
from bdjax.data.reduce import reduced
from bdjax.data.source import SPLITS, Source, check_archives, check_facts, digest, locate, read_split
from bdjax.data.table import DATASETS
from bdjax.errors import UserError, choose
from bdjax.types import Dataset, DataSpec, Split

VIAS = ("archive", "tfds")
PathLike = str | os.PathLike[str]


def spec(name: str) -> DataSpec:
    """Return the static facts of a data set, without reading it; raise :class:`UserError` for an unknown name."""
    return DATASETS[choose("dataset", name, DATASETS)].spec


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
      name: of ``DATASETS``.
      data_dir: folder that holds the data set's folder, or that folder itself; None: the environment's BDJAX_DATA_DIR. Its
        archives are read only if the cache does not hold the data set.
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
    source = DATASETS[choose("dataset", name, DATASETS)]
    choose("way to read a data set", via, VIAS)
    for split, wanted in zip(SPLITS, (train_images, test_images), strict=True):
        _check_size(source, split, wanted)
    if source.rows is not None:
        splits, total = _embedded(source, via)
    else:
        splits, total = _cached(source, data_dir, via, files.cache_root(cache))
    if train_images is None and test_images is None:
        return Dataset(source.spec, splits["train"], splits["test"], total)
    train = reduced("train", splits["train"], source.spec.classes, train_images)
    test = reduced("test", splits["test"], source.spec.classes, test_images)
    return Dataset(source.spec, train, test, digest(train, test))


def sizes(name: str, *, train_images: int | None = None, test_images: int | None = None) -> tuple[int, int]:
    """Return how many training and test rows :func:`load` would return, without reading any; its arguments and errors."""
    source = DATASETS[choose("dataset", name, DATASETS)]
    for split, wanted in zip(SPLITS, (train_images, test_images), strict=True):
        _check_size(source, split, wanted)
    return train_images or sum(source.counts["train"]), test_images or sum(source.counts["test"])


def prepare(name: str, data_dir: PathLike | None = None, *, cache: PathLike | None = None, via: str = "archive") -> Path:
    """Check a data set's archives and write its cached arrays, whether or not they exist already.

    Args:
      name: of ``DATASETS``.
      data_dir: see :func:`load`.
      cache: see :func:`load`.
      via: see :func:`load`.

    Returns:
      The folder of the cached arrays.

    Raises:
      UserError: see :func:`load`; also for embedded data, which need no preparation.
    """
    source = DATASETS[choose("dataset", name, DATASETS)]
    choose("way to read a data set", via, VIAS)
    if source.rows is not None:
        raise UserError(f"{name} comes with an installed library: there is nothing to prepare.")
    root = files.cache_root(cache)
    _build(source, locate(source, data_dir), via, root)
    return _folder(source, via, root)


def _embedded(source: Source, via: str) -> tuple[dict[str, Split], str]:
    assert source.rows is not None
    if via != "archive":
        raise UserError(f"{source.spec.name} comes with an installed library and has no archives to read via {via!r}.")
    splits = {split: check_facts(source, split, source.rows(split)) for split in SPLITS}
    found = digest(splits["train"], splits["test"])
    if source.digest is not None and found != source.digest:
        raise UserError(f"{source.spec.name}: the installed library brings other images (sha256 {found[:12]}...) than expected.")
    return splits, found


def _cached(source: Source, data_dir: PathLike | None, via: str, root: Path) -> tuple[dict[str, Split], str]:
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"the data folder {os.fspath(data_dir)!r} does not exist")
    folder, facts = _folder(source, via, root), _facts(source, via)
    found = files.read(folder, facts)
    if found is None:
        _build(source, locate(source, data_dir), via, root)
        found = files.read(folder, facts)
    if found is None:
        raise UserError(f"the cache in {folder} cannot be read back after it was written: is the disk sound?")
    return found


def _folder(source: Source, via: str, root: Path) -> Path:
    return root / "datasets" / f"{source.spec.name}-{via}"


def _facts(source: Source, via: str) -> Mapping[str, Any]:
    return {"name": source.spec.name, "version": source.version, "via": via, "archives": dict(source.archives)}


def _build(source: Source, folder: Path, via: str, root: Path) -> None:
    assert source.encoded is not None
    with files.written_in(root):  # say so before minutes of decoding
        _folder(source, via, root).mkdir(parents=True, exist_ok=True)
    check_archives(source, folder)
    if via == "tfds":
        from bdjax.data import tfds_archive  # tensorflow-datasets is asked for only here

        splits = {split: read_split(source, split, tfds_archive.encoded(source, folder, split, root)) for split in SPLITS}
    else:
        splits = {split: read_split(source, split, source.encoded(folder, split)) for split in SPLITS}
    files.write(_folder(source, via, root), splits, _facts(source, via))


def _check_size(source: Source, split: str, wanted: int | None) -> None:
    if wanted is None:
        return
    total = sum(source.counts[split])
    if not source.spec.classes <= wanted <= total:
        raise UserError(
            f"{split}_images is {wanted}; {source.spec.name} allows {source.spec.classes} (one per class) to {total} (all rows)."
        )
