"""scikit-learn's bundled handwritten digits, upsampled to 16x16x3: real images without a download."""

import functools

import numpy as np

from bdjax.data.source import Edition, Source
from bdjax.errors import UserError
from bdjax.types import DataSpec, Split

TEST_ROWS = 360
SPEC = DataSpec(
    name="digits",
    image_shape=(16, 16, 3),
    classes=10,
    mean=(0.305034, 0.305034, 0.305034),  # of the training rows
    std=(0.318404, 0.318404, 0.318404),
    flip=False,
    pad=2,
    class_names=tuple("0123456789"),
)


def upsample(images: np.ndarray) -> np.ndarray:
    """Double both sides by bilinear interpolation with half-pixel centres, in integers.

    Args:
      images: i32[n h w], 0..16 (the scale of the bundled digits).

    Returns:
      u8[n 2h 2w 3], 0..255, the same value in all channels. Along each side a new pixel is 3/4 of the pixel it lies in plus 1/4
      of the neighbour on its side (itself at the border); 16 becomes 255, rounded to nearest.
    """

    def double(values: np.ndarray, axis: int) -> np.ndarray:
        size = values.shape[axis]
        before = np.take(values, np.maximum(np.arange(size) - 1, 0), axis)
        after = np.take(values, np.minimum(np.arange(size) + 1, size - 1), axis)
        pairs = np.stack([3 * values + before, 3 * values + after], axis + 1)
        return pairs.reshape(*values.shape[:axis], 2 * size, *values.shape[axis + 1 :])

    sixteenths = double(double(images.astype(np.int32), 1), 2)  # 0..256
    grey = ((255 * sixteenths + 128) // 256).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def held_out(labels: np.ndarray, rows: int = TEST_ROWS) -> np.ndarray:
    """Choose a stratified test split: classes in proportion (largest remainder), rows evenly spaced within each class.

    Args:
      labels: i32[n].
      rows: size of the test split.

    Returns:
      bool[n], True for test rows.
    """
    counts = np.bincount(labels)
    share, rest = np.divmod(counts * rows, len(labels))
    share[np.argsort(-rest, kind="stable")[: rows - share.sum()]] += 1
    chosen = np.zeros(len(labels), bool)
    for label, (count, size) in enumerate(zip(counts, share, strict=True)):
        ranks = ((2 * np.arange(size) + 1) * count) // (2 * size)
        chosen[np.flatnonzero(labels == label)[ranks]] = True
    return chosen


@functools.cache
def _splits() -> dict[str, Split]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits are bundled with scikit-learn, which is not installed: pip install scikit-learn.") from error
    bundle = load_digits()
    images, labels = upsample(bundle.images.astype(np.int32)), bundle.target.astype(np.int32)
    test = held_out(labels)
    for array in (images, labels):
        array.setflags(write=False)
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}


def rows(split: str) -> Split:
    """Return the rows of a split, in the bundle's order.

    Args:
      split: "train" (1,437 rows) or "test" (360 rows).

    Returns:
      Host arrays: images u8[n 16 16 3], labels i32[n].

    Raises:
      UserError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (the part
      that scikit-learn bundles).
    Differs: 8x8 images are upsampled to 16x16 and given three equal channels; the split is ours.
    """
    return _splits()[split]


EDITION = Edition(
    name="bundled",
    counts={"train": (142, 145, 142, 146, 145, 146, 145, 143, 139, 144), "test": (36, 37, 35, 37, 36, 36, 36, 36, 35, 36)},
)
DIGITS = Source(
    spec=SPEC,
    editions=(EDITION,),
    digest="2060777b8bf65855f14225bce1c501bf4c6be2ede641bcfa0cec19db5b2e7a54",
    rows=rows,
)
