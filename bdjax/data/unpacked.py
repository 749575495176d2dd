"""Unpacked copies of the known data sets: which layout a folder has, and whether the copy is complete."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bdjax.data import own
from bdjax.data.source import SPLITS, Edition, Layout, Listing, Source, check_counts
from bdjax.errors import UserError


def layouts_in(path: Path, sources: Iterable[Source]) -> list[tuple[Source, Layout, Path]]:
    """Return the layouts of these data sets that ``path`` has, and where in it they lie; [] if it has none."""
    found = []
    for source in sources:
        for layout in source.layouts:
            try:
                place = layout.at(path)
            except OSError as error:
                raise UserError(f"cannot look into {path}: {error.strerror or error}.") from error
            if place is not None:
                found.append((source, layout, place))
    return found


def listed(layout: Layout, place: Path) -> Listing:
    """Return the images of a layout; an operating system's refusal is a :class:`UserError` as every other fault is."""
    try:
        return layout.listing(place)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or place}: {error.strerror or error}.") from error


def complete_copy(source: Source, layout: Layout, listing: Listing) -> Edition | None:
    """Return the edition that a copy is, by its rows per class; None: it is none, because rows are missing or are others."""
    if listing.classes != source.spec.class_names:
        return None
    labels = {split: np.array([row.label for row in listing.rows[split]], np.int32) for split in SPLITS}
    counts = {split: tuple(np.bincount(labels[split], minlength=source.spec.classes).tolist()) for split in SPLITS}
    first = source.editions[0].first
    if tuple(labels["train"][: len(first)].tolist()) != first:
        return None
    for known in (*(edition.counts for edition in source.editions), *layout.counts):
        if all(tuple(known[split]) == counts[split] for split in SPLITS):
            return _edition(layout, listing, counts, first)
    return None


def edition(source: Source, layout: Layout, place: Path) -> Edition:
    """Return the edition that the copy in ``place`` is.

    Raises:
      UserError: it is not complete; with the rows that are missing, or too many.
    """
    listing = listed(layout, place)
    found = complete_copy(source, layout, listing)
    if found is not None:
        return found
    name, advice = source.spec.name, f"as a data set of your own it is read by --dataset {place}"
    if listing.classes != source.spec.class_names:
        odd = next((one for one in listing.classes if one not in source.spec.class_names), None)
        there = f"{len(listing.classes)} of its classes" if odd is None else f"the class {odd!r}, which is none of its"
        raise UserError(f"{place} is no whole copy of {name}: it holds {there}; {advice}.")
    try:
        for split in SPLITS:
            check_counts(source, source.editions[0], split, np.array([row.label for row in listing.rows[split]], np.int32))
    except UserError as error:
        raise UserError(f"{place} is no whole copy. {str(error).rstrip('.')}; {advice}.") from None
    raise UserError(f"{place} is no whole copy of {name}; {advice}.")


def kept(layout: Layout, counts: Mapping[str, Iterable[int]], content: str) -> Edition:
    """Return the edition of a copy that was prepared earlier and is not at hand."""
    return Edition(layout.key, {split: tuple(counts[split]) for split in SPLITS}, resize=layout.resize, content=content)


def _edition(layout: Layout, listing: Listing, counts: Mapping[str, tuple[int, ...]], first: tuple[int, ...]) -> Edition:
    return Edition(
        layout.key,
        counts,
        encoded=lambda folder, split: listing.rows[split],
        resize=layout.resize,
        first=first,
        content=own.content(listing),
    )
