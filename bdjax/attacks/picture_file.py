"""A user's picture, pixel by pixel with its transparency, in any of the forms that image files have."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.errors import UserError, first_line
from bdjax.types import UInt8

CHANNELS = (1, 3)  # of images that a picture can be made for


def read_picture(
    field: str, path: Path, channels: int, size: tuple[int, int] | None = None, longest: int | None = None
) -> UInt8[np.ndarray, "h w _"]:
    """Return the pixels of an image file and how opaque they are.

    Grey pictures become colour ones where images have 3 channels, and the other way round; palettes, CMYK and 16-bit grey are
    turned into 8 bits per channel. The first picture of an animation is taken, turned upright as its file says.

    Args:
      field: of a configuration, for messages.
      path: the file.
      channels: c, of the images it is made for: 1 or 3.
      size: (h, w) to which it is scaled as data sets are, whole, without keeping its aspect ratio: Pillow's bilinear filter,
        which averages when it shrinks; transparent pixels lend no colour to their neighbours. None: its own size.
      longest: pixels of its longer side, to which it is scaled with its aspect ratio kept. None: its own size.

    Returns:
      c + 1 channels; the last is 0 where the picture is transparent and 255 where it is opaque.

    Raises:
      UserError: another number of channels, or a file that Pillow cannot read as an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if channels not in CHANNELS:
        raise UserError(f"{field}: a picture has 1 or 3 channels; the images have {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about very large pictures; too large ones are an error below
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(_eight_bits(opened, field, path))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        known = not isinstance(error, UnidentifiedImageError)
        reason = first_line(error) if known else "it is no image that Pillow knows"
        raise UserError(f"{field}: {path} cannot be read as an image: {reason}; give a PNG, JPEG, BMP or WebP file") from None
    if longest is not None:
        factor = longest / max(image.size)
        size = (max(1, round(image.height * factor)), max(1, round(image.width * factor)))
    clear = np.asarray(image)[:, :, 3].min() < 255
    image = image.convert(("L" if channels == 1 else "RGB") if not clear else "LA" if channels == 1 else "RGBA")
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return pixels.copy() if clear else np.concatenate([pixels, np.full_like(pixels[:, :, :1], 255)], 2)


def _eight_bits(image: Any, field: str, path: Path) -> Any:
    """Return a picture of any mode as RGBA with 8 bits per channel."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGBA")
    if image.mode in ("I", "F"):
        raise UserError(f"{field}: {path} has pixels of 32 bits, whose range is not known; save it with 8 or 16 bits")
    return (image if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") else image.convert("RGB")).convert("RGBA")
