"""How much a trigger changes an image, in the usual figures of image quality."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError

WINDOW = 7  # side in pixels of the window of SSIM: smaller images have none


class Quality(NamedTuple):
    """Figures of n triggered images beside their originals."""

    psnr: NDArray[np.float64]  # f64[n], dB; infinite where the trigger changes nothing
    ssim: NDArray[np.float64]  # f64[n], in [-1, 1]; 1 = the same image
    linf: NDArray[np.int64]  # i64[n], grey levels, 0 … 255: the largest change of a pixel and channel


class Summary(NamedTuple):
    """The same over all images."""

    images: int
    unchanged: int  # images that are as they were: they have no finite PSNR
    psnr: float | None  # dB, mean over the images that changed; None where none did
    ssim: float  # mean over all images
    linf: float  # grey levels, mean over all images
    linf_max: int  # grey levels, of the image that changes most


def quality(images: NDArray[np.uint8], triggered: NDArray[np.uint8]) -> Quality:
    """PSNR, SSIM and L∞ of every triggered image, on the grid 0 … 255.

    PSNR = 10 log10(255² / mean (x' - x)²); SSIM = mean of (2 μ μ' + c1)(2 σ' + c2) / ((μ² + μ'² + c1)(σ² + σ'² + c2)) over all
    7x7 windows and channels, with c1 = (0.01 255)², c2 = (0.03 255)²; L∞ = max |x' - x|.

    Args:
      images: u8[n h w c], the originals, at least 7x7 pixels.
      triggered: u8[n h w c], the same images with the trigger.

    Raises:
      UserError: other dtypes, two shapes, no image, or images too small for the window of SSIM.

    Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
      Similarity", IEEE Transactions on Image Processing, 2004; computed by scikit-image.
    Differs: the window is uniform, 7x7, with the covariance of a sample, as scikit-image has it by default, and not Gaussian of
      11x11, which on images of 32 pixels would leave half of them to the border.
    """
    images, triggered = np.asarray(images), np.asarray(triggered)
    if images.shape != triggered.shape or images.ndim != 4 or not len(images):
        raise UserError(f"quality compares two stacks of images [n h w c]; given {images.shape} and {triggered.shape}")
    if images.dtype != np.uint8 or triggered.dtype != np.uint8:
        raise UserError(f"quality compares uint8 images; given {images.dtype} and {triggered.dtype}")
    if min(images.shape[1:3]) < WINDOW:
        height, width = images.shape[1:3]
        raise UserError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels; given {height}x{width}")
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError as error:
        raise UserError(
            "image quality is measured with scikit-image, which is not installed: pip install scikit-image"
        ) from error
    linf = np.abs(triggered.astype(np.int64) - images.astype(np.int64)).max((1, 2, 3))
    pairs = list(zip(images, triggered, strict=True))
    psnr = [peak_signal_noise_ratio(*pair, data_range=255) if most else np.inf for pair, most in zip(pairs, linf, strict=True)]
    ssim = [structural_similarity(*pair, win_size=WINDOW, channel_axis=-1, data_range=255) for pair in pairs]
    return Quality(np.asarray(psnr, np.float64), np.asarray(ssim, np.float64), linf)


def summary(found: Quality) -> Summary:
    """Means over images; those that the trigger leaves as they are have no finite PSNR: they are counted, and left out of it."""
    changed = found.linf > 0
    return Summary(
        images=len(changed),
        unchanged=int((~changed).sum()),
        psnr=float(found.psnr[changed].mean()) if changed.any() else None,
        ssim=float(found.ssim.mean()),
        linf=float(found.linf.mean()),
        linf_max=int(found.linf.max()),
    )
