"""CIFAR-10 from two zip archives of JPEG files, ``<split>/<class>/NNNN.jpg``, in archive order."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from bdjax.data.source import Source
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


def encoded(folder: Path, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield (JPEG bytes, label) of every row of a split, in the order of its archive.

    Args:
      folder: holds ``cifar10-<split>.zip`` and ``labels.txt`` (one class name per line; the line number is the label).
      split: "train" or "test".

    Raises:
      UserError: the class names are not CIFAR-10's, or an entry lies in another folder than a class of this split.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
    Differs: the archives hold a JPEG re-encoding, so pixels differ slightly from the binary release.
    """
    names = tuple((folder / "labels.txt").read_text(encoding="utf-8").split())
    if names != SPEC.class_names:
        raise UserError(f"{folder / 'labels.txt'} names the classes {', '.join(names)}; expected {', '.join(SPEC.class_names)}.")
    path = folder / f"cifar10-{split}.zip"
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith("/"):
                continue
            parts = entry.split("/")
            if len(parts) != 3 or parts[0] != split or parts[1] not in names:
                raise UserError(f"{path} holds {entry!r}; expected {split}/<class>/<file>.")
            yield archive.read(entry), names.index(parts[1])


CIFAR10 = Source(
    spec=SPEC,
    counts={"train": (5_000,) * 10, "test": (1_000,) * 10},
    folder="cifar10",
    archives={
        "cifar10-train.zip": "67c9305a74cc4d9b6b3c2297583f8f5c2cc81b69b438115ea1f6314c90a57a13",
        "cifar10-test.zip": "8d83fbfb8a8548059250f95bdfaea5bccfe6ea9e5c76e71cdfb72cfc44e4bad5",
        "labels.txt": "2ce042b1e0b48db4bb214408e6414ba18b2731c24af244f2d6c112fddf31af00",
    },
    encoded=encoded,
)
