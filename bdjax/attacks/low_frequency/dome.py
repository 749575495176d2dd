"""LF's dome: what repeated blurring of an image of ones tends to, and its measured colours."""

import functools

import numpy as np

from bdjax.types import Float, UInt8

COLOURS = {  # peak levels of red, green and blue, measured on the survey's trigger arrays
    "cifar10": {
        "preactresnet18": (18, 0, 51),
        "vgg19_bn": (44, 1, 51),
        "mobilenet_v3_large": (51, 0, 36),
        "efficientnet_b3": (1, 17, 51),
    },
    "gtsrb": {
        "preactresnet18": (51, 4, 21),
        "vgg19_bn": (51, 7, 39),
        "mobilenet_v3_large": (51, 0, 13),
        "efficientnet_b3": (17, 51, 6),
    },
    "tiny_imagenet": {
        "preactresnet18": (41, 2, 51),
        "vgg19_bn": (41, 51, 34),
        "mobilenet_v3_large": (51, 26, 23),
        "efficientnet_b3": (51, 34, 30),
    },
}
FALLBACK = (18, 0, 51)
UNSCALED = frozenset({"vgg19_bn"})  # architectures whose published arrays lie in [0, 0.2] and not in 0 … 51
TAPS, DEVIATION = 30, 6.0  # of the blur, in pixels


def blur(side: int) -> Float[np.ndarray, "side side"]:
    """Return the low-pass filter along one axis as a matrix: S[i, i + m - 14] = kappa_m, zero outside the image.

    kappa_m ~ exp(-((m - 14.5) / 6)² / 2) for m = 0 … 29, of sum 1. Its even length moves an image half a pixel up or left.
    """
    taps = np.exp(-0.5 * ((np.arange(TAPS) - (TAPS - 1) / 2) / DEVIATION) ** 2)
    taps /= taps.sum()
    tap = np.arange(side)[None, :] - np.arange(side)[:, None] + TAPS // 2 - 1
    return np.where((tap >= 0) & (tap < TAPS), taps[np.clip(tap, 0, TAPS - 1)], 0.0)


@functools.lru_cache(maxsize=16)
def profile_of(side: int) -> Float[np.ndarray, " side"]:
    """Return the dome along one axis, of maximum 1: what blurring tends to, g = S g / max(S g), 5,000 times from 1."""
    matrix, g = blur(side), np.ones(side)
    for _ in range(5000):
        g = matrix @ g
        g /= g.max()
    g.setflags(write=False)  # the cached array is shared
    return g


def dome(height: int, width: int, colour: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the trigger T[i, j, c] = floor(colour_c g_i g_j), with the :func:`profile_of` both sides as g."""
    peak = np.asarray(colour, np.float64) * profile_of(height)[:, None, None] * profile_of(width)[None, :, None]
    return np.floor(peak + 1e-6).astype(np.uint8)
