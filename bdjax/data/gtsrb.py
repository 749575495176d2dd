"""GTSRB, the German Traffic Sign Recognition Benchmark: the final training and test sets, whole images scaled to 32x32."""

import functools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bdjax.data.annotations import class_rows, labels_of
from bdjax.data.gtsrb_folders import TESTED, layouts
from bdjax.data.source import Edition, Row, Source
from bdjax.errors import UserError
from bdjax.types import DataSpec

TRAIN, TEST, TRUTH = "GTSRB_Final_Training_Images.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"
SPEC = DataSpec(
    name="gtsrb",
    image_shape=(32, 32, 3),
    classes=43,
    mean=(0.0, 0.0, 0.0),  # not normalised
    std=(1.0, 1.0, 1.0),
    flip=False,  # many signs are not symmetric
    pad=4,
    class_names=(
        *(f"limit {speed} km/h" for speed in (20, 30, 50, 60, 70, 80)),
        *("end of limit 80 km/h", "limit 100 km/h", "limit 120 km/h", "no overtaking", "no overtaking by lorries"),
        *("priority at next crossing", "priority road", "give way", "stop", "no vehicles", "no lorries", "no entry"),
        *("danger", "bend to left", "bend to right", "double bend", "uneven road", "slippery road", "road narrows on right"),
        *("road works", "traffic lights", "pedestrians", "children", "cyclists", "snow or ice", "wild animals"),
        *("end of all limits", "turn right ahead", "turn left ahead", "ahead only", "ahead or right", "ahead or left"),
        *("keep right", "keep left", "roundabout", "end of no overtaking", "end of no overtaking by lorries"),
    ),
)
PLACE = {
    "train": re.compile(r"GTSRB/Final_Training/Images/(\d{5})/([^/]+\.ppm)"),
    "test": re.compile(r"GTSRB/Final_Test/Images/([^/]+\.ppm)"),
}


def encoded(folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split, in the order of its archive.

    Training labels are the class folders, and must be those of the 43 annotation files beside the images; test labels are those
    of ``GT-final_test.csv``. Every image must be listed exactly once.

    Args:
      folder: holds the three archives.
      split: "train" or "test".

    Raises:
      UserError: an image lies elsewhere than expected, or images and annotations disagree.

    Source: J. Stallkamp, M. Schlipsing, J. Salmen and C. Igel, Man vs. computer: Benchmarking machine learning algorithms for
      traffic sign recognition, Neural Networks 32, 2012.
    Differs: the region of interest is not cut out and the aspect ratio is not kept, as in the survey. There is an older training
      archive of 26,640 images under another name; it is not this data set.
    """
    path = folder / (TRAIN if split == "train" else TEST)
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.namelist() if entry.endswith(".ppm")]
        for entry in entries:
            if not PLACE[split].fullmatch(entry):
                raise UserError(f"{path} holds {entry!r}; expected {PLACE[split].pattern}.")
        labels = _train_labels(path, archive, entries) if split == "train" else _test_labels(folder, entries)
        for entry in entries:
            yield Row(f"{path}: {entry}", labels[entry], functools.partial(archive.read, entry))


def _train_labels(path: Path, archive: zipfile.ZipFile, entries: list[str]) -> dict[str, int]:
    """Return labels by folder, checked against the annotation file of every class."""
    listed = []
    folders = sorted({entry.rpartition("/")[0] for entry in entries})
    for folder in folders:
        number = folder.rpartition("/")[2]
        for file, label in _rows(path, archive, f"{folder}/GT-{number}.csv"):
            if label != int(number):
                raise UserError(f"{path}: {folder}/GT-{number}.csv gives {file} the class {label}, its folder {int(number)}.")
            listed.append((f"{folder}/{file}", label))
    return labels_of(f"{path}: GT-*.csv", listed, entries)


def _test_labels(folder: Path, entries: list[str]) -> dict[str, int]:
    path = folder / TRUTH
    with zipfile.ZipFile(path) as archive:
        rows = _rows(path, archive, "GT-final_test.csv")
    return labels_of(f"{path}: GT-final_test.csv", ((f"GTSRB/Final_Test/Images/{file}", label) for file, label in rows), entries)


def _rows(path: Path, archive: zipfile.ZipFile, entry: str) -> list[tuple[str, int]]:
    """(file, class) of every line of an annotation file."""
    if entry not in archive.namelist():
        raise UserError(f"{path} lacks {entry}.")
    return class_rows(f"{path}: {entry}", archive.read(entry).decode(), SPEC.classes)


# Tracks of 30 frames; one track of class 33 has 29.
TRACKS: tuple[int, ...] = (7, 74, 75, 47, 66, 62, 14, 48, 47, 49, 67, 44, 70, 72, 26, 21, 14, 37, 40, 7, 12, 11)
TRACKS += (13, 17, 9, 50, 20, 8, 18, 9, 15, 26, 8, 23, 14, 40, 13, 7, 69, 10, 12, 8, 8)
COUNTS = {"train": tuple(30 * tracks - (label == 33) for label, tracks in enumerate(TRACKS)), "test": TESTED}
SITE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
OFFICIAL = Edition(
    name="official",
    counts=COUNTS,
    archives={
        TRAIN: "md5:f33fd80ac59bff73c82d25ab499e03a3",
        TEST: "md5:c7e4e6327067d32654124b0fe9e82185",
        TRUTH: "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5",
    },
    encoded=encoded,
    urls={file: f"{SITE}/{file}" for file in (TRAIN, TEST, TRUTH)},
    resize=True,  # 25 to 266 pixels wide
)
SMALL = Edition(
    name="32x32",  # every image scaled already, by the same filter
    counts=COUNTS,
    archives={
        TRAIN: "sha256:09e50246b2c3e9a8346c8ae273b2cb9f25fac9177a03b0b272aa0c3db0ea1086",
        TEST: "sha256:95a8ae8d9ce41c515302b7588d9c42b72ae7fb0f877ce3d0ab8338581c2dc5f2",
        TRUTH: "sha256:974ad75eaf1268fc566cce15d199ef182b5159344c982df012e54fa26b70dc7e",
    },
    encoded=encoded,
)
GTSRB = Source(spec=SPEC, editions=(OFFICIAL, SMALL), folder="gtsrb", layouts=layouts(SPEC))
