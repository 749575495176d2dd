"""Image files as bytes: one size, RGB, lossless where they are stored anew."""

import io

import numpy as np
import pytest
from PIL import Image

from bdjax.data.images import decoded, portable, ppm
from bdjax.errors import UserError
from tests.data.made_up import image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_a_ppm_is_its_pixels():
    np.testing.assert_array_equal(decoded(ppm(PIXELS), (6, 9, 3)), PIXELS)
    assert ppm(PIXELS)[:12] == b"P6 9 6 255\n" + PIXELS.tobytes()[:1]


def test_scaling_by_hand():
    # halving averages with the weights 1, 3, 3, 1 of a triangle twice as wide, cut at the border
    row = np.array([[[0] * 3, [0] * 3, [240] * 3, [240] * 3]], np.uint8)
    np.testing.assert_array_equal(decoded(ppm(row), (1, 2, 3), True)[0, :, 0], [34, 206])
    np.testing.assert_array_equal(decoded(ppm(PIXELS), (6, 9, 3), True), PIXELS)
    with pytest.raises(UserError, match=r"an image is \[6, 9, 3\], expected \[9, 6, 3\]"):
        decoded(ppm(PIXELS), (9, 6, 3))


def test_what_is_stored_anew_is_a_png_of_the_same_pixels():
    jpeg, png, grey = image(PIXELS, "JPEG"), image(PIXELS, "PNG"), image(PIXELS[..., 0], "JPEG")
    assert portable(jpeg, (6, 9, 3)) is jpeg and portable(png, (6, 9, 3)) is png
    for data, shape, resize in ((grey, (6, 9, 3), False), (ppm(PIXELS), (6, 9, 3), False), (jpeg, (4, 4, 3), True)):
        stored = portable(data, shape, resize)
        with Image.open(io.BytesIO(stored)) as opened:
            assert opened.format == "PNG" and opened.mode == "RGB"
        np.testing.assert_array_equal(decoded(stored, shape), decoded(data, shape, resize))
