"""Image files as bytes: one size, RGB, lossless where they are stored anew."""

import io

import numpy as np
import pytest
from PIL import Image

from bdjax.data.images import PNG, decoded, portable, ppm
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


def file_of(pixels, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    shown = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    shown.save(file, kind, **options)
    return file.getvalue()


RAMP = np.tile((np.arange(16) * 4369).astype(np.uint16), (4, 1))  # 0 … 65535
SHORT = np.tile((np.arange(16) * 17).astype(np.uint8), (4, 1))  # 0 … 255


def rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def png_16(samples):
    """A PNG of 16-bit samples u16[h w 3 or 4], which Pillow does not write."""
    import struct
    import zlib

    h, w, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", w, h, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tagged(data, **tags):
    """A little-endian TIFF with short entries of its directory replaced: {"t262": value}."""
    import struct

    data = bytearray(data)
    start = struct.unpack("<I", data[4:8])[0]
    for entry in range(struct.unpack("<H", data[start : start + 2])[0]):
        place = start + 2 + 12 * entry
        number = struct.unpack("<H", data[place : place + 2])[0]
        if f"t{number}" in tags:
            data[place + 8 : place + 10] = struct.pack("<H", tags[f"t{number}"])
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        file_of(RAMP),
        file_of(RAMP, "TIFF"),
        file_of(RAMP, "PPM"),
        b"P5 16 4 65535\n" + RAMP.astype(">u2").tobytes(),
        b"P2 16 4 65535\n" + b" ".join(b"%d" % value for value in RAMP.ravel()),
        b"P5 16 4 4095\n" + (np.arange(16) * 273).astype(">u2").tobytes() * 4,  # 12 bits
        png_16(rgb(RAMP)),
        png_16(np.concatenate([rgb(RAMP), np.full((4, 16, 1), 65535, np.uint16)], 2)),
        b"P6 16 4 65535\n" + rgb(RAMP).astype(">u2").tobytes(),
        tagged(file_of(65535 - RAMP, "TIFF"), t262=0),  # white is 0
        tagged(file_of(255 - SHORT, "TIFF"), t262=0),
    ],
    ids=[
        "png",
        "tiff",
        "pgm",
        "pgm by hand",
        "plain pgm",
        "12-bit pgm",
        "rgb",
        "rgba",
        "ppm",
        "inverted tiff",
        "inverted 8-bit tiff",
    ],
)
def test_sixteen_bits_are_scaled_to_eight(data):
    np.testing.assert_array_equal(decoded(data, None), rgb(SHORT))
    assert decoded(data, None, channels=1).shape == (4, 16, 1)


def test_sixteen_bits_are_rounded_to_nearest():
    values = np.array([[0, 127, 128, 129, 256, 386, 65406, 65407, 65535]], np.uint16)
    np.testing.assert_array_equal(decoded(file_of(values), None)[0, :, 0], np.floor(values[0] / 257 + 0.5))


def test_floats_and_wide_integers_need_a_range():
    unit = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(4, 0)
    data = file_of(unit, "TIFF")
    with pytest.raises(
        UserError, match=r"floating-point numbers from 0 to 1 and does not say .* \{\"value_range\": \[LOW, HIGH\]\}"
    ):
        decoded(data, None)
    np.testing.assert_array_equal(decoded(data, None, value_range=(0, 1)), rgb(SHORT))
    with pytest.raises(UserError, match=r"from 0 to 1, outside the value_range \[0, 0.5\]"):
        decoded(data, None, value_range=(0, 0.5))
    wide = np.arange(16, dtype=np.int32)[None].repeat(4, 0) * 1000
    with pytest.raises(UserError, match="whole numbers of 32 bits or with a sign from 0 to 15000"):
        decoded(file_of(wide, "TIFF"), None)
    np.testing.assert_array_equal(decoded(file_of(wide, "TIFF"), None, value_range=(0, 15000)), rgb(SHORT))
    twelve = (np.arange(16, dtype=np.uint16) * 273)[None].repeat(4, 0)  # 12 bits in 16: the file does not tell
    np.testing.assert_array_equal(decoded(file_of(twelve), None, value_range=(0, 4095)), rgb(SHORT))
    unit[0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        decoded(file_of(unit, "TIFF"), None, value_range=(0, 1))
    with pytest.raises(UserError, match="value_range is for greyscale images of more than 8 bits; this one has mode RGB"):
        decoded(file_of(PIXELS), None, value_range=(0, 1))


def test_transparency_is_laid_over_black():
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    clear[0, 0, 3], clear[1, 1, 3] = 0, 102
    expected = PIXELS.copy()
    expected[0, 0] = 0
    expected[1, 1] = np.round(PIXELS[1, 1] * 0.4)
    np.testing.assert_allclose(decoded(file_of(clear), None).astype(int), expected, atol=1)
    np.testing.assert_array_equal(decoded(file_of(clear), None)[2:], PIXELS[2:])
    shaded = np.dstack([PIXELS[..., 0], clear[..., 3]])
    np.testing.assert_array_equal(decoded(file_of(shaded), None)[0, 0], 0)
    palette = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=int(np.asarray(palette)[0, 0]))
    see_through = np.asarray(palette) == np.asarray(palette)[0, 0]
    np.testing.assert_array_equal(decoded(file.getvalue(), None)[see_through], 0)
    np.testing.assert_array_equal(decoded(file.getvalue(), None)[~see_through], np.asarray(palette.convert("RGB"))[~see_through])
    keyed = file_of(PIXELS[..., 0], transparency=int(PIXELS[0, 0, 0]))
    np.testing.assert_array_equal(decoded(keyed, None)[0, 0], 0)


def test_palettes_one_bit_and_cmyk():
    palette = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    file = io.BytesIO()
    palette.save(file, "PNG")
    np.testing.assert_array_equal(decoded(file.getvalue(), None), np.asarray(palette.convert("RGB")))
    checks = (PIXELS[..., 0] > 127).astype(np.uint8) * 255
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        np.testing.assert_array_equal(decoded(file_of(checks, kind, "1"), None), rgb(checks))
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    np.testing.assert_allclose(decoded(file_of(flat, "JPEG", "CMYK", quality=100), None).astype(int), flat, atol=4)
    gif = file_of(checks, "GIF")
    np.testing.assert_array_equal(decoded(gif, None), rgb(checks))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_a_camera_noted_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2)}
    turned |= {6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(PIXELS)}
    for kind in ("PNG", "TIFF"):
        data = file_of(PIXELS, kind, exif=exif)
        np.testing.assert_array_equal(decoded(data, None), turned[orientation])
    shape = turned[orientation].shape
    stored = portable(file_of(PIXELS, exif=exif), shape)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), turned[orientation])


def frames(kind):
    file = io.BytesIO()
    pictures = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"it is empty \(0 bytes\); fetch or save it again"),
        (b"<html>404</html>", r"it begins with b'<html>404</html>', as no image does; allowed are PNG, JPEG, .* or remove it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer that Git LFS left .* run: git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it begins with b'%!PS-Adobe-3.0 E', as no image does"),
        (file_of(PIXELS, "JPEG")[:150], "it is truncated or damaged"),
        (file_of(PIXELS)[:20], r"it is truncated or damaged \("),
        (file_of(PIXELS)[:80], "it is truncated or damaged"),
        (file_of(PIXELS, "TIFF")[:60], "it is truncated or damaged"),
        (file_of(PIXELS, "BMP")[:60], "it is truncated or damaged"),
        (ppm(PIXELS)[:40], "it is truncated or damaged"),
        (file_of(PIXELS, "WEBP")[:40], "it is truncated or damaged"),
        (frames("GIF"), r"it holds 2 pictures \(an animation or several pages\); save the one that is meant"),
        (frames("TIFF"), "it holds 2 pictures"),
        (frames("PNG"), "it holds 2 pictures"),
        (frames("WEBP"), "it holds 2 pictures"),
        (b"P6 20000 20000 255\n", r"it has 400,000,000 pixels; at most 89,478,485 are read, .*: scale it down first"),
        (b"P6 10000 10000 255\n", "it has 100,000,000 pixels"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line_without_addresses(data, message):
    for call in (lambda: decoded(data, None), lambda: decoded(data, (6, 9, 3)), lambda: decoded(data, (6, 9, 3), True)):
        with pytest.raises(UserError, match=message) as found:
            call()
        assert "0x" not in str(found.value) and "\n" not in str(found.value) and " object at" not in str(found.value)


def test_a_photograph_with_its_preview_is_one_picture():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS[:3])], quality=100)
    assert decoded(file.getvalue(), None).shape == PIXELS.shape


def test_pixels_stand_for_a_file_too():
    np.testing.assert_array_equal(decoded(PIXELS, (6, 9, 3)), PIXELS)
    np.testing.assert_array_equal(decoded(PIXELS[..., :1], (6, 9, 3)), rgb(PIXELS[..., 0]))
    assert decoded(PIXELS[..., :1], (12, 18, 1), True).shape == (12, 18, 1)
    np.testing.assert_array_equal(decoded(portable(PIXELS[..., :1], (6, 9, 1)), (6, 9, 1)), PIXELS[..., :1])
