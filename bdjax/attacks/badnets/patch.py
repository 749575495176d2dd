"""BadNets' patch and its place: a block of one colour, or the pixels of an image file."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.attacks.picture_file import read_picture
from bdjax.attacks.user_files import given
from bdjax.errors import UserError, choose
from bdjax.types import DataSpec, Float, UInt8

# Shares of the free rows and columns that lie above and to the left of the patch.
PLACES = {"bottom_right": (1, 1), "bottom_left": (1, 0), "top_right": (0, 1), "top_left": (0, 0), "center": (0.5, 0.5)}


class Patch(NamedTuple):
    """Pixels that take the place of an image's."""

    pixels: np.ndarray  # u8[p q c]
    opacity: np.ndarray  # u8[p q 1]: 0 leaves the image as it is, 255 replaces it


def coloured(weights: Float[np.ndarray, "p q"], colour: Any, spec: DataSpec) -> Patch:
    """Return a patch of one colour, round(weight colour) per pixel and channel; opaque where round(255 weight) is above 0.

    Args:
      weights: in [0, 1].
      colour: 0 … 255, one value or one per channel.
      spec: data set facts.

    Raises:
      UserError: a colour out of range or of another number of channels.
    """
    values = np.asarray(_colour("badnets.colour", colour, spec.image_shape[2]), np.float64)
    pixels = np.floor(weights[:, :, None] * values + 0.5).astype(np.uint8)
    return Patch(pixels, np.where(np.floor(255 * weights + 0.5) > 0, 255, 0).astype(np.uint8)[:, :, None])


def pattern_of(text: str, size: int | None, transparent: Any, spec: DataSpec) -> tuple[Patch, str]:
    """Return the patch that an image file holds, and the name of the file in records.

    Args:
      text: path of the file, or its name in a record.
      size: pixels of its longer side; None: as it is.
      transparent: the colour of pixels that are left out; None: none but those the file says are transparent.
      spec: data set facts.

    Raises:
      UserError: the file cannot be read, is larger than the images, or nothing of the images, or of the pattern, can be seen.
    """
    height, width, channels = spec.image_shape
    if size is not None and size < 1:
        raise UserError(f"badnets.size is {size}; the longer side of a pattern has at least 1 pixel")
    found = given("badnets.pattern", text, _pattern, channels, size)
    pixels, opacity = found.array[:, :, :-1], found.array[:, :, -1:]
    tall, wide = pixels.shape[:2]
    if tall > height or wide > width:
        raise UserError(
            f"badnets.pattern {text} is {tall}x{wide} pixels, and images of {spec.name} are {height}x{width}; "
            f"give badnets.size, at most {min(height, width)}, to scale it"
        )
    if transparent is not None:
        left_out = np.all(pixels == _colour("badnets.transparent", transparent, channels), 2, keepdims=True)
        opacity = np.where(left_out, 0, opacity).astype(np.uint8)
    if not opacity.any():
        raise UserError(f"badnets.pattern {text} is transparent everywhere, so it would change nothing")
    if (tall, wide) == (height, width) and opacity.all() and opacity.min() == 255:
        raise UserError(
            f"badnets.pattern {text} hides the whole image: give it an alpha channel, name the colour to be left out with "
            "badnets.transparent (0 for files of BackdoorBench), or scale it with badnets.size"
        )
    return Patch(pixels, opacity), found.name


def _pattern(field: str, path: Path, channels: int, size: int | None) -> UInt8[np.ndarray, "p q _"]:
    return read_picture(field, path, channels, longest=size)


def placed(patch: Patch, place: Any, spec: DataSpec) -> Patch:
    """Return the patch on a map of the size of the images, transparent everywhere else.

    Args:
      patch: not larger than the images.
      place: a name of :data:`PLACES`, or (row, column) of its upper left pixel.
      spec: data set facts.

    Raises:
      UserError: another name, or the patch would not lie inside the images.
    """
    height, width, channels = spec.image_shape
    tall, wide = patch.pixels.shape[:2]
    free = (height - tall, width - wide)
    if isinstance(place, str):
        share = PLACES[choose("badnets.place (or give [row,column])", place, PLACES)]
        row, column = (int(part * room) for part, room in zip(share, free, strict=True))
    else:
        integers = len(place) == 2 and all(isinstance(at, int) and not isinstance(at, bool) for at in place)
        if not integers or not all(0 <= at <= room for at, room in zip(place, free, strict=True)):
            raise UserError(
                f"badnets.place is {list(place)}; allowed for {tall}x{wide} pixels on {height}x{width}: "
                f"[row,column] with row 0 … {free[0]} and column 0 … {free[1]}, or {', '.join(PLACES)}"
            )
        row, column = place
    pixels, opacity = np.zeros((height, width, channels), np.uint8), np.zeros((height, width, 1), np.uint8)
    inside = (slice(row, row + tall), slice(column, column + wide))
    pixels[inside], opacity[inside] = patch
    return Patch(pixels, opacity)


def _colour(field: str, colour: Any, channels: int) -> tuple[int, ...]:
    """Return the colour per channel."""
    values = tuple(colour) if isinstance(colour, (tuple, list)) else (colour,) * channels
    integers = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 for value in values)
    if not integers or len(values) != channels:
        given_as = list(colour) if isinstance(colour, (tuple, list)) else colour
        raise UserError(f"{field} is {given_as}; allowed: a whole number of 0 … 255, or a list of {channels}, one per channel")
    return values
