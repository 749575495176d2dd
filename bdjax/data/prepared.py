"""The cached arrays of a data set of the table: which edition they are, and how they are made from its archives."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bdjax.data import archives, unpacked
from bdjax.data import cache as files
from bdjax.data.source import SPLITS, Edition, Row, Source, read_rows
from bdjax.errors import UserError
from bdjax.types import Split

PathLike = str | os.PathLike[str]


def edition_of(source: Source, data_dir: PathLike | None, via: str, root: Path) -> tuple[Edition, Path | None] | None:
    """Return the edition that is meant, and the folder of its archives where they are at hand; None: neither is there.

    The archives in the data directory decide; where there are none, an unpacked copy in it; else the one edition that is prepared
    in the cache.

    Args:
      source: the data set, with archives.
      data_dir: see :func:`bdjax.data.load`.
      via: "archive" or "tfds".
      root: of the cache.

    Raises:
      UserError: several editions are prepared and no archives say which is meant, the archives are none of the known ones, or
        the unpacked copy is not complete.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"the data folder {os.fspath(data_dir)!r} does not exist")
    if (found := at_hand(source, data_dir, root)) is not None:
        return found
    kept = [e for e in source.editions if files.manifest(place(source, e, via, root), facts(source, e, via))]
    kept += _unpacked_kept(source, via, root)
    if len(kept) > 1:
        names = ", ".join(edition.name for edition in kept)
        raise UserError(
            f"{source.spec.name} is prepared in {len(kept)} editions ({names}) and no archives say which is meant: give the data "
            f"directory of one, or delete the folder of the other in {root / 'datasets'}."
        )
    return (kept[0], None) if kept else None


def at_hand(source: Source, data_dir: PathLike | None, root: Path) -> tuple[Edition, Path] | None:
    """Return (edition, folder) of the archives, or of an unpacked copy where there are none; None: nothing is at hand.

    Raises:
      UserError: the archives are none of the known ones, or the unpacked copy is not complete.
    """
    folder = archives.find(source, data_dir, root)
    if folder is not None:
        return archives.edition_in(source, folder), folder
    for home in archives.homes(source, data_dir):
        for _, layout, found in unpacked.layouts_in(home, (source,)):
            return unpacked.edition(source, layout, found), found
    return None


def known_counts(source: Source) -> list[Mapping[str, tuple[int, ...]]]:
    """Return the {split: rows of each class} of every release."""
    return [*(edition.counts for edition in source.editions), *(c for layout in source.layouts for c in layout.counts)]


def read(source: Source, data_dir: PathLike | None, via: str, root: Path) -> tuple[dict[str, Split], str]:
    """Return ({"train", "test"}, digest) from the cache, which is made from the archives if need be; see :func:`edition_of`."""
    meant = edition_of(source, data_dir, via, root)
    if meant is None:
        raise archives.absent(source, data_dir, root)
    edition, archive_folder = meant
    folder, source_facts = place(source, edition, via, root), facts(source, edition, via)
    found = files.read(folder, source_facts)
    if found is None:
        if archive_folder is None:
            raise archives.absent(source, data_dir, root)
        build(source, edition, archive_folder, via, root)
        found = files.read(folder, source_facts)
    if found is None:
        raise UserError(f"the cache in {folder} cannot be read back after it was written: is the disk sound?")
    return found


def build(source: Source, edition: Edition, folder: Path, via: str, root: Path) -> None:
    """Check the archives of an edition and write its cached arrays.

    Args:
      source: the data set.
      edition: what its archives are.
      folder: of its archives.
      via: "archive" or "tfds".
      root: of the cache.

    Raises:
      UserError: an archive is not the known one, holds other rows than the known ones, or the cache cannot be written.
    """
    assert edition.encoded is not None
    with files.written_in(root):  # say so before minutes of decoding
        place(source, edition, via, root).mkdir(parents=True, exist_ok=True)
    archives.check(source, edition, folder)
    splits = {}
    for split in SPLITS:
        if via == "tfds":
            from bdjax.data import tfds_archive  # tensorflow-datasets is asked for only here

            rows: Iterable[Row] = tfds_archive.encoded(source, edition, folder, split, root)
        else:
            rows = edition.encoded(folder, split)
        decoded = read_rows(source, edition, split, rows)
        splits[split] = files.Pieces(sum(edition.counts[split]), source.spec.image_shape, decoded)
    counts = {"counts": edition.counts}
    files.write(place(source, edition, via, root), source.spec.name, splits, facts(source, edition, via), counts)


def place(source: Source, edition: Edition, via: str, root: Path) -> Path:
    """Return the folder of the cached arrays: one for each edition and way to read it."""
    how = "unpacked" if via == "archive" and not edition.archives else via
    return root / "datasets" / f"{source.spec.name}-{edition.name}-{how}"


def facts(source: Source, edition: Edition, via: str) -> Mapping[str, Any]:
    """Return what decides whether cached arrays are still the right ones."""
    return {
        "name": source.spec.name,
        "version": source.version,
        "via": via,
        "edition": edition.name,
        "archives": dict(edition.archives),
        **({"content": edition.content} if edition.content else {}),
    }


def _unpacked_kept(source: Source, via: str, root: Path) -> list[Edition]:
    """Return the unpacked copies that are prepared in the cache."""
    found = []
    for layout in source.layouts:
        edition = unpacked.kept(layout, source.counts, "")
        noted = files.noted(place(source, edition, via, root))
        if noted is None or "content" not in noted["source"]:
            continue
        edition = unpacked.kept(layout, noted["found"]["counts"], noted["source"]["content"])
        if noted["source"] == facts(source, edition, via):
            found.append(edition)
    return found
