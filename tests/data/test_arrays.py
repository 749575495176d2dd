"""A data set from arrays: constants of the training rows, errors that name what is wrong."""

import numpy as np
import pytest

from bdjax.data import from_arrays
from bdjax.data.arrays import moments
from bdjax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def test_a_data_set_from_arrays():
    dataset = from_arrays(IMAGES, LABELS, IMAGES[:6], LABELS[:6], name="mine", pad=1, flip=True)
    assert dataset.spec.name == "mine" and dataset.spec.image_shape == (4, 4, 3) and dataset.spec.classes == 3
    assert dataset.spec.pad == 1 and dataset.spec.flip is True
    assert dataset.train.labels.dtype == np.int32
    np.testing.assert_allclose(dataset.spec.mean, (IMAGES / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.spec.std, (IMAGES / 255).std((0, 1, 2)))
    again = from_arrays(IMAGES, LABELS, IMAGES[:6], LABELS[:6])
    assert again.digest == dataset.digest
    assert from_arrays(IMAGES, LABELS[::-1], IMAGES[:6], LABELS[:6]).digest != dataset.digest


def test_a_constant_channel_has_deviation_one():
    assert moments(np.full((2, 2, 2, 1), 51, np.uint8)) == ((0.2,), (1.0,))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": IMAGES[0]}, r"images have shape \[4, 4, 3\]"),
        ({"images": IMAGES[..., :2]}, r"images have shape \[12, 4, 4, 2\]"),
        ({"images": IMAGES / 255}, r"images are float64; uint8 .* from 0.* to 1: np.round\(255 \* images\).astype\(np.uint8\)"),
        ({"images": IMAGES.astype(np.float32)}, r"images are float32; .* to 255: np.round\(images\).astype\(np.uint8\)"),
        ({"test_images": IMAGES[:6] / 64 - 2}, "test_images are float64; .* from -2 .*: undo the normalisation"),
        ({"images": np.full((12, 4, 4, 3), np.nan)}, "images are float64; .* they hold NaN or infinite values"),
        ({"images": IMAGES.astype(np.uint16) * 257}, r"images are uint16; .* to 65535: np.round\(images / 257\)"),
        ({"images": IMAGES.astype(np.int64)}, r"images are int64; .*: np.round\(images\).astype\(np.uint8\)"),
        ({"images": IMAGES > 9}, r"images are bool; .*: 255 \* images.astype\(np.uint8\)"),
        (
            {"images": IMAGES.transpose(0, 3, 1, 2)},
            r"images have shape \[12, 3, 4, 4\]; .* channels last: images.transpose\(0, 2, 3, 1\)",
        ),
        ({"images": IMAGES[..., 0].repeat(2, 2)}, r"images have shape \[12, 4, 8\]; .* greyscale images as images\[..., None\]"),
        (
            {"images": np.dstack([IMAGES.reshape(12, 16, 3), IMAGES.reshape(12, 16, 3)[..., :1]]).reshape(12, 4, 4, 4)},
            r"images\[..., :3",
        ),
        ({"images": np.array([{}] * 12)}, "images are objects, as of images of several sizes; .* np.stack"),
        ({"images": [IMAGES[0], IMAGES[0, :2]]}, "images cannot be made one array: .*inhomogeneous"),
        ({"images": "images.npy"}, "images are <U10; uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images have shape \[0, 4, 4, 3\]"),
        ({"labels": LABELS[:5]}, "labels has 5 rows, images 12"),
        ({"labels": LABELS.astype(float)}, "labels are float64"),
        ({"labels": LABELS[:, None]}, r"labels are int64\[12, 1\]"),
        ({"labels": LABELS - 1}, "labels range from -1 to 1; allowed are 0 to 1"),
        ({"labels": LABELS * 0}, "test_labels range from 0 to 2; allowed are 0 to 0"),
        ({"labels": LABELS * 0, "test_labels": LABELS[:6] * 0}, "at least 2 classes"),
        ({"test_images": IMAGES[:6, :3]}, r"test_images are \[3, 4, 3\], images are \[4, 4, 3\]"),
        ({"classes": 2}, "labels range from 0 to 2; allowed are 0 to 1"),
        ({"pad": -1}, "pad is -1"),
        ({"class_names": ("a", "b")}, "2 names for 3 classes"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    arguments = {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:6], "test_labels": LABELS[:6]} | change
    with pytest.raises(UserError, match=message):
        from_arrays(**arguments)
