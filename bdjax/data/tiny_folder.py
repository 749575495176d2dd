"""Tiny-ImageNet unpacked: ``train/<id>/images``, ``val/images`` with ``val_annotations.txt``, ``wnids.txt`` and ``words.txt``."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from bdjax.data.annotations import labels_of
from bdjax.data.compact import compact
from bdjax.data.image_folder import image_names, image_rows
from bdjax.data.junk import passed_over
from bdjax.data.source import SPLITS, Layout, Listing, Row
from bdjax.errors import UserError
from bdjax.types import DataSpec

HOMES = ("", "tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200")
ANNOTATIONS = "val_annotations.txt"


def layout(spec: DataSpec, names: Mapping[str, str]) -> Layout:
    """Return the layout; ``names`` are those of the classes by WordNet id, for ids of which ``words.txt`` says nothing."""
    needs = f"train/<id>/images/, val/images/ and val/{ANNOTATIONS} (Tiny-ImageNet)"
    return Layout("unpacked", needs, _at, functools.partial(_listing, spec, names))


def _at(path: Path) -> Path | None:
    for base in (path / home for home in HOMES):
        known = (base / "wnids.txt").is_file() or (base / "val" / ANNOTATIONS).is_file()
        if known and (base / "train").is_dir() and (base / "val").is_dir():
            return base
    return None


def _listing(spec: DataSpec, names: Mapping[str, str], base: Path) -> Listing:
    """Classes are the ids in sorted order; rows come by class and file name, those of val/images by file name."""
    ids = sorted(entry.name for entry in (base / "train").iterdir() if entry.is_dir() and not passed_over(entry.name))
    if (base / "wnids.txt").is_file():
        listed = set(_text(base / "wnids.txt").split())
        for wnid in sorted(listed ^ set(ids)):
            if wnid in listed:
                raise UserError(f"{base} lacks train/{wnid}, which wnids.txt lists; unpack it again.")
            raise UserError(f"{base}/train/{wnid} is no class that {base}/wnids.txt lists; move it away, or list it there.")
    labels = {wnid: label for label, wnid in enumerate(ids)}
    train = [row for wnid in ids for row in _of_class(base / "train" / wnid, labels[wnid])]
    annotated = (base / "val" / "images").is_dir()
    test = (
        _annotated(base / "val", labels)
        if annotated
        else [row for wnid in ids for row in _of_class(base / "val" / wnid, labels[wnid])]
    )
    tables = [name for name in ("wnids.txt", "words.txt", f"val/{ANNOTATIONS}") if (base / name).is_file()]
    rows = {"train": train, "test": test}
    lines = _text(base / "words.txt").splitlines() if "words.txt" in tables else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    titles = [names.get(wnid) or words.get(wnid, wnid).partition(",")[0].strip() for wnid in ids]
    classes, moved, note = compact(titles, rows, f"{base}: it has the layout of {spec.name}")
    home = f"{base}{os.sep}"
    files = (*(row.name.removeprefix(home) for split in SPLITS for row in rows[split]), *tables)
    return Listing(base, classes, moved, files, flip=spec.flip, pad=spec.pad, note=note)


def _of_class(folder: Path, label: int) -> list[Row]:
    """Return the images of a class: in its folder ``images``, or in itself."""
    place = folder / "images" if (folder / "images").is_dir() else folder
    rows = image_rows(place, _images(place), label)
    if not rows:
        raise UserError(f"{place} holds no image.")
    return rows


def _annotated(val: Path, labels: Mapping[str, int]) -> list[Row]:
    listed = []
    path = val / ANNOTATIONS
    if not path.is_file():
        raise UserError(f"{val} lacks {ANNOTATIONS}, which holds the labels of val/images; unpack it again.")
    for line in _text(path).splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise UserError(f"{path} gives {file} the id {wnid!r}, of which there is no folder in train/.")
        listed.append((file, labels[wnid]))
    found = labels_of(str(path), listed, _images(val / "images"), str(val / "images"))
    return [row for name in sorted(found) for row in image_rows(val / "images", (name,), found[name])]


def _images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; unpack it again.")
    return image_names(folder)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
