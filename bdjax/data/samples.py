"""The samples of a decoded picture, whatever their depth and colour model, as 8-bit grey or RGB."""

from typing import Any

import numpy as np

from bdjax.errors import UserError

RANGE = '{"value_range": [LOW, HIGH]}'  # of dataset.json


def eight_bits(image: Any, channels: int, value_range: tuple[float, float] | None = None) -> Any:
    """Return a picture in Pillow's mode "RGB" or "L".

    Transparency is laid over black, the colour that the random crop pads with.

    Args:
      image: a loaded Pillow image in any mode.
      channels: 3 or 1.
      value_range: the samples that become 0 and 255, see :func:`bdjax.data.images.decoded`.

    Raises:
      UserError: samples whose range is not known, that lie outside it or are not finite; a colour model that cannot be converted.
    """
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = Image.fromarray(_scaled(image, value_range))
    elif value_range is not None:
        raise UserError(f"value_range is for greyscale images of more than 8 bits; this one has mode {image.mode}.")
    try:
        if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
            colour = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
        return image.convert("L" if channels == 1 else "RGB")
    except ValueError:
        raise UserError(f"its colours (mode {image.mode}) cannot be read; save it as an 8-bit RGB PNG.") from None


def _scaled(image: Any, value_range: tuple[float, float] | None) -> np.ndarray:
    """Samples of more than 8 bits as u8[h w]: the range's ends become 0 and 255, rounded to nearest."""
    values = np.asarray(image).astype(np.float64)
    low, high = value_range or _known_range(image, values)
    least, most = values.min(), values.max()
    if not np.isfinite(values).all():
        raise UserError("it holds values that are not finite (NaN or infinite); replace them and save it again.")
    if least < low or most > high:
        raise UserError(f"its values go from {least:g} to {most:g}, outside the value_range [{low:g}, {high:g}]; widen that.")
    if getattr(image, "tag_v2", {}).get(262) == 0:  # PhotometricInterpretation: white is 0, which Pillow turns for 8 bits alone
        values = low + high - values
    return np.floor((values - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def _known_range(image: Any, values: np.ndarray) -> tuple[float, float]:
    """Return the range of the samples where the file says it: 16-bit samples, or as many bits as a TIFF says."""
    tags = getattr(image, "tag_v2", {})
    if image.mode != "F" and (image.mode != "I" or image.format in ("PPM", "PNG")):
        bits = tags.get(258, 16)  # BitsPerSample
        return 0.0, float(2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1)
    kind = "floating-point numbers" if image.mode == "F" else "whole numbers of 32 bits or with a sign"
    raise UserError(
        f"it holds {kind} from {np.nanmin(values):g} to {np.nanmax(values):g} and does not say which are black and white; put "
        f"{RANGE} into dataset.json, or save it with 8 or 16 bits."
    )
