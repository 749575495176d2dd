"""CIFAR-10: the official binary release, or two zip archives of JPEG files, ``<split>/<class>/NNNN.jpg``."""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bdjax.data.images import ppm
from bdjax.data.source import Edition, Source
from bdjax.errors import UserError
from bdjax.types import DataSpec

SPEC = DataSpec(
    name="cifar10",
    image_shape=(32, 32, 3),
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.243, 0.261),
    flip=True,
    pad=4,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


BATCHES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes


def binary(folder: Path, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield (PPM bytes, label) of every row of a split of the binary release, batch 1 to 5, in the order of each batch.

    Args:
      folder: holds ``cifar-10-binary.tar.gz``.
      split: "train" or "test".

    Raises:
      UserError: a batch is missing, is no whole number of records, or holds a label above 9; other class names.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
    """
    path = folder / "cifar-10-binary.tar.gz"
    wanted = {"batches.meta.txt", *BATCHES[split]}
    held: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as archive:  # read once from front to back: going back would inflate it again
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in wanted and (stream := archive.extractfile(member)) is not None:
                held[name] = stream.read()
    if lacking := sorted(wanted - held.keys()):
        raise UserError(f"{path} lacks {', '.join(lacking)}.")
    _check_names(f"{path}: batches.meta.txt", held["batches.meta.txt"].decode())
    for name in BATCHES[split]:
        if len(held[name]) % RECORD:
            raise UserError(f"{path}: {name} has {len(held[name]):,} bytes, no multiple of the {RECORD} of a record.")
        records = np.frombuffer(held[name], np.uint8).reshape(-1, RECORD)
        if len(records) and records[:, 0].max() >= SPEC.classes:
            raise UserError(f"{path}: {name} holds the label {records[:, 0].max()}; allowed are 0 to {SPEC.classes - 1}.")
        for record in records:
            yield ppm(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)), int(record[0])


def jpeg(folder: Path, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield (JPEG bytes, label) of every row of a split, in the order of its archive.

    Args:
      folder: holds ``cifar10-<split>.zip`` and ``labels.txt`` (one class name per line; the line number is the label).
      split: "train" or "test".

    Raises:
      UserError: the class names are not CIFAR-10's, or an entry lies in another folder than a class of this split.

    Differs: a JPEG re-encoding ordered by class, so pixels differ slightly from the binary release.
    """
    names = _check_names(str(folder / "labels.txt"), (folder / "labels.txt").read_text(encoding="utf-8"))
    path = folder / f"cifar10-{split}.zip"
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith("/"):
                continue
            parts = entry.split("/")
            if len(parts) != 3 or parts[0] != split or parts[1] not in names:
                raise UserError(f"{path} holds {entry!r}; expected {split}/<class>/<file>.")
            yield archive.read(entry), names.index(parts[1])


def _check_names(where: str, text: str) -> tuple[str, ...]:
    names = tuple(text.split())
    if names != SPEC.class_names:
        raise UserError(f"{where} names the classes {', '.join(names)}; expected {', '.join(SPEC.class_names)}.")
    return names


COUNTS = {"train": (5_000,) * 10, "test": (1_000,) * 10}
OFFICIAL = Edition(
    name="official",
    counts=COUNTS,
    archives={"cifar-10-binary.tar.gz": "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    encoded=binary,
    urls={"cifar-10-binary.tar.gz": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"},
)
JPEG = Edition(
    name="jpeg",
    counts=COUNTS,
    archives={
        "cifar10-train.zip": "sha256:67c9305a74cc4d9b6b3c2297583f8f5c2cc81b69b438115ea1f6314c90a57a13",
        "cifar10-test.zip": "sha256:8d83fbfb8a8548059250f95bdfaea5bccfe6ea9e5c76e71cdfb72cfc44e4bad5",
        "labels.txt": "sha256:2ce042b1e0b48db4bb214408e6414ba18b2731c24af244f2d6c112fddf31af00",
    },
    encoded=jpeg,
)
CIFAR10 = Source(spec=SPEC, editions=(OFFICIAL, JPEG), folder="cifar10")
