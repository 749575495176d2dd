"""Image files as bytes: decoded to RGB pixels of one size, and stored without loss where they are not in that form."""

import io

import numpy as np

from bdjax.errors import UserError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def decoded(data: bytes, shape: tuple[int, int, int] | None, resize: bool = False) -> np.ndarray:
    """Return the pixels of an image file, greyscale and palette images as RGB.

    Args:
      data: the file (JPEG, PNG, PPM, BMP, WebP).
      shape: (h, w, 3) that is needed; None: as it is.
      resize: scale the whole image to ``shape`` (aspect ratio not kept, Pillow's bilinear filter, which averages when it
        shrinks) instead of refusing another size.

    Returns:
      u8[h w 3].

    Raises:
      UserError: another size without ``resize``, or Pillow is missing.
      OSError, ValueError, SyntaxError: Pillow cannot read the file.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("reading image files needs Pillow: pip install pillow.") from error
    with Image.open(io.BytesIO(data)) as image:
        colour = image.convert("RGB")
    if shape is not None and resize and (colour.height, colour.width) != shape[:2]:
        colour = colour.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(colour)
    if shape is not None and pixels.shape != shape:
        raise UserError(f"an image is {list(pixels.shape)}, expected {list(shape)}.")
    return pixels


def portable(data: bytes, shape: tuple[int, int, int], resize: bool = False) -> bytes:
    """Return an image file that every reader understands and whose pixels are those of :func:`decoded`.

    JPEG and PNG files that are RGB and of the right size are returned unchanged; all others become a PNG of the decoded pixels.

    Args:
      data: see :func:`decoded`.
      shape: see :func:`decoded`.
      resize: see :func:`decoded`.
    """
    from PIL import Image

    if data.startswith((JPEG, PNG)):
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "RGB" and (image.height, image.width) == shape[:2]:
                return data
    file = io.BytesIO()
    Image.fromarray(decoded(data, shape, resize)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def ppm(pixels: np.ndarray) -> bytes:
    """Return u8[h w 3] as a binary PPM file: a header before the raw bytes."""
    h, w, _ = pixels.shape
    return b"P6 %d %d 255\n" % (w, h) + pixels.tobytes()
