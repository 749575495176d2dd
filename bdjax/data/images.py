"""Image files as bytes: opened with care, decoded to 8-bit pixels of one size, and stored anew where they are in another form."""

import io
import re
import warnings
from typing import Any

import numpy as np

from bdjax.data.samples import eight_bits
from bdjax.errors import UserError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF")  # nothing else is tried: some readers start other programs
_KNOWN = (JPEG[:2], PNG[:4], b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", *(b"P%d" % kind for kind in range(1, 7)))
_ORIENTATION = 0x0112  # the tag of EXIF
_FETCH = "fetch or save it again"


def opened(data: bytes, formats: tuple[str, ...] = FORMATS) -> Any:
    """Return the single picture in an image file as a loaded Pillow image, in the mode of the file.

    Args:
      data: the file.
      formats: Pillow's names of the formats that are tried.

    Raises:
      UserError: the file is empty, no image, damaged, an animation, or larger than Pillow's bound against files that inflate
        without end. The text says what is wrong and what to do, and leaves it to the caller to name the file.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("reading image files needs Pillow: pip install pillow.") from error
    if not data:
        raise UserError(f"it is empty (0 bytes); {_FETCH}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=list(formats))
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: one picture and its preview
            if frames > 1:
                raise UserError(f"it holds {frames} pictures (an animation or several pages); save the one that is meant.")
            image.load()
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(_unidentified(data, formats)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        pixels = f"{int(count[1]):,} pixels" if count else "too many pixels"
        limit = f"at most {Image.MAX_IMAGE_PIXELS:,} are read" if Image.MAX_IMAGE_PIXELS else "that is refused"
        raise UserError(f"it has {pixels}; {limit}, because small files may inflate without end: scale it down first.") from None
    except MemoryError:
        raise UserError("its pixels do not fit into the memory that is left; scale it down first.") from None
    except Exception as error:  # whatever a damaged file makes a reader do
        raise UserError(f"it is truncated or damaged ({plain(error)}); {_FETCH}.") from None
    return image


def decoded(
    data: bytes | np.ndarray,
    shape: tuple[int, int, int] | None,
    resize: bool = False,
    *,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Return the pixels of an image file with 8 bits per sample.

    16-bit greyscale becomes round(v / 257), 16-bit colour keeps its high byte, palettes, CMYK and 1-bit images become colour or
    grey, transparent pixels are laid over black, and the orientation that a camera noted (EXIF) is applied.

    Args:
      data: the file (see ``FORMATS``), or its pixels u8[h w c].
      shape: (h, w, channels) that is needed; None: as it is.
      resize: scale the whole image to ``shape`` (aspect ratio not kept, Pillow's bilinear filter, which averages when it
        shrinks) instead of refusing another size.
      channels: 3 or 1, where ``shape`` is None; colour becomes grey by 0.299 R + 0.587 G + 0.114 B.
      value_range: the samples that become 0 and 255, for greyscale images of more than 8 bits; None: the whole range of their
        type, and floating-point numbers and 32-bit integers are refused.

    Returns:
      u8[h w c].

    Raises:
      UserError: see :func:`opened`; a range of values that is not known or not kept, another size without ``resize``, or Pillow
        is missing. The text leaves it to the caller to name the file.
    """
    channels = channels if shape is None else shape[2]
    if isinstance(data, np.ndarray) and data.shape[2] == channels and (shape is None or data.shape == shape):
        return data
    if isinstance(data, np.ndarray):
        from PIL import Image

        image = Image.fromarray(data if data.shape[2] == 3 else data[:, :, 0]).convert("L" if channels == 1 else "RGB")
    else:
        raw = opened(data)
        image = _upright(eight_bits(raw, channels, value_range), _orientation(raw))
    if shape is not None and resize and (image.height, image.width) != shape[:2]:
        image = image.resize((shape[1], shape[0]), _filter())
    pixels = np.asarray(image)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if shape is not None and pixels.shape != shape:
        raise UserError(f"an image is {list(pixels.shape)}, expected {list(shape)}.")
    return pixels


def portable(data: bytes | np.ndarray, shape: tuple[int, int, int], resize: bool = False) -> bytes:
    """Return an image file that every reader understands and whose pixels are those of :func:`decoded`.

    JPEG and PNG files that are 8-bit RGB (or greyscale, where that is needed), upright and of the right size are returned
    unchanged; all others become a PNG of the decoded pixels.

    Args:
      data: see :func:`decoded`.
      shape: see :func:`decoded`.
      resize: see :func:`decoded`.
    """
    from PIL import Image

    if isinstance(data, bytes) and data.startswith((JPEG, PNG)):
        image = opened(data)
        wanted = "L" if shape[2] == 1 else "RGB"
        sized = image.mode == wanted and (image.height, image.width) == shape[:2]
        if sized and _orientation(image) == 1 and "transparency" not in image.info:
            return data
    file = io.BytesIO()
    pixels = decoded(data, shape, resize)
    Image.fromarray(pixels if shape[2] == 3 else pixels[:, :, 0]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def ppm(pixels: np.ndarray) -> bytes:
    """Return u8[h w 3] as a binary PPM file: a header before the raw bytes."""
    h, w, _ = pixels.shape
    return b"P6 %d %d 255\n" % (w, h) + pixels.tobytes()


def plain(error: BaseException) -> str:
    """Return the text of an error in one line, without the addresses of objects that Python puts into some."""
    text = " ".join(re.sub(r"<[^<>]* object at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
    return text.rstrip(".") or type(error).__name__


def _unidentified(data: bytes, formats: tuple[str, ...]) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer that Git LFS left in place of the file; run: git lfs pull."
    if data.startswith(_KNOWN):
        return f"it is truncated or damaged ({len(data):,} bytes that begin with {data[:8]!r}); {_FETCH}."
    return f"it begins with {data[:16]!r}, as no image does; allowed are {', '.join(formats)}: {_FETCH}, or remove it."


def _orientation(image: Any) -> int:
    """Return the EXIF orientation 1 … 8 of a loaded image; 1 = upright, also where the notes of the camera cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged notes leave the pixels as they are
        return 1


def _upright(image: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    moves = (
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    return image.transpose(moves[orientation - 2]) if 2 <= orientation <= 8 else image


def _filter() -> Any:
    from PIL.Image import Resampling

    return Resampling.BILINEAR
