"""SVHN, the Street View House Numbers: digits cropped to 32x32, as two MATLAB files.

Source: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng, Reading Digits in Natural Images with Unsupervised Feature
  Learning, NIPS Workshop on Deep Learning and Unsupervised Feature Learning, 2011.
Differs: the digit 0 has the label 0, where the files write 10; the additional easier images (``extra_32x32.mat``) are not read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bdjax.data.compact import compact
from bdjax.data.images import plain
from bdjax.data.source import SPLITS, Edition, Layout, Listing, Row, Source
from bdjax.errors import UserError
from bdjax.types import DataSpec

SPEC = DataSpec(
    name="svhn",
    image_shape=(32, 32, 3),
    classes=10,
    mean=(0.4377, 0.4438, 0.4728),  # of the training rows
    std=(0.1980, 0.2010, 0.1970),
    flip=False,
    pad=4,
    class_names=tuple("0123456789"),
)
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def at(path: Path) -> Path | None:
    """Return the folder that holds one of the two files: ``path`` or the folder ``svhn`` in it."""
    homes = (path, path / "svhn", path / "SVHN")
    return next((home for home in homes if any((home / file).is_file() for file in FILES.values())), None)


def listing(place: Path) -> Listing:
    """List the rows; the pixels of a file are read when its first row is decoded. See :class:`bdjax.data.source.Layout`."""
    rows = {split: list(encoded(place, split)) for split in SPLITS}
    classes, moved, note = compact(SPEC.class_names, rows, f"{place}: it has the layout of svhn")
    return Listing(place, classes, moved, tuple(FILES.values()), flip=SPEC.flip, pad=SPEC.pad, note=note)


def encoded(folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split, in the order of the file.

    Args:
      folder: holds the two files.
      split: "train" or "test".

    Raises:
      UserError: a file is missing or cannot be read, or holds no images X u8[h w 3 n] with labels y of 1 … 10.
    """
    path = folder / FILES[split]
    if not path.is_file():
        raise UserError(f"{folder} lacks {path.name}; needed are {' and '.join(FILES.values())}.")
    state = path.stat()
    labels, pixels = _labels(path, (state.st_size, state.st_mtime_ns)), functools.cache(functools.partial(_images, path))
    for row, label in enumerate(labels):
        yield Row(f"{path}: image {row}", int(label), functools.partial(_image, pixels, row, len(labels)))


def _image(pixels: "functools._lru_cache_wrapper[np.ndarray]", row: int, rows: int) -> np.ndarray:
    images = pixels()
    if images.shape[3] != rows:
        raise UserError(f"the file has {images.shape[3]:,} images and {rows:,} labels.")
    return np.ascontiguousarray(images[..., row])


@functools.lru_cache(maxsize=8)
def _labels(path: Path, stamp: tuple[int, int]) -> np.ndarray:
    """i64[n], 0 … 9; read once while size and time of change stay."""
    labels = _variable(path, "y").reshape(-1)
    if labels.dtype.kind not in "iuf":
        raise UserError(f"{path}: the labels y are {labels.dtype}; numbers from 1 to 10 are needed.")
    least, most = labels.min(), labels.max()
    if not np.isin(labels, np.arange(11)).all() or (least == 0 and most == 10):
        raise UserError(
            f"{path}: the labels y go from {least} to {most}; allowed are the whole numbers 1 to 10 (10 is the digit 0)."
        )
    digits = labels.astype(np.int64)
    return np.where(digits == 10, 0, digits)


def _images(path: Path) -> np.ndarray:
    images = _variable(path, "X")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise UserError(f"{path}: the images X are {images.dtype}{list(images.shape)}; uint8[height, width, 3, rows] is needed.")
    return images


def _variable(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=[name])
    except Exception as error:  # whatever a damaged file makes the reader do
        raise UserError(f"{path} cannot be read as a MATLAB file: {plain(error)}; fetch it again.") from None
    if not isinstance(found.get(name), np.ndarray) or not found[name].size:
        raise UserError(f"{path} holds no variable {name!r}; the images are X, their labels y.")
    return found[name]


COUNTS = {
    "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
    "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
}
OFFICIAL = Edition(
    name="official",
    counts=COUNTS,
    archives={
        FILES["train"]: "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
        FILES["test"]: "md5:eb5a983be6a315427106f1b164d9cef3",
    },
    encoded=encoded,
    urls={file: f"http://ufldl.stanford.edu/housenumbers/{file}" for file in FILES.values()},
)
MAT = Layout("mat", " and ".join(FILES.values()), at, listing)
SVHN = Source(spec=SPEC, editions=(OFFICIAL,), folder="svhn", layouts=(MAT,))
