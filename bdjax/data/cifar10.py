"""CIFAR-10: the official releases, binary or pickled, or two zip archives of JPEG files, ``<split>/<class>/NNNN.jpg``.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
"""

import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bdjax.data.cifar_batches import Form, encoded, layout
from bdjax.data.junk import passed_over
from bdjax.data.source import Edition, Row, Source
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


BINARY = Form(
    key="binary",
    spec=SPEC,
    home="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    meta="batches.meta.txt",
    label=0,
)
PYTHON = Form(
    key="python",
    spec=SPEC,
    home="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    label="labels",
    names="label_names",
)
BATCHES = {"train": BINARY.train, "test": BINARY.test}


def jpeg(folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split, in the order of its archive.

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
            if entry.endswith("/") or any(map(passed_over, entry.split("/"))):
                continue
            parts = entry.split("/")
            if len(parts) != 3 or parts[0] != split or parts[1] not in names:
                raise UserError(f"{path} holds {entry!r}; expected {split}/<class>/<file>.")
            yield Row(f"{path}: {entry}", names.index(parts[1]), functools.partial(archive.read, entry))


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
    encoded=functools.partial(encoded, BINARY),
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
PICKLED = Edition(
    name="python",  # the same rows in the same order as the binary release
    counts=COUNTS,
    archives={"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"},
    encoded=functools.partial(encoded, PYTHON),
)
LAYOUTS = (layout(PYTHON), layout(BINARY))
CIFAR10 = Source(spec=SPEC, editions=(OFFICIAL, JPEG, PICKLED), folder="cifar10", layouts=LAYOUTS)
