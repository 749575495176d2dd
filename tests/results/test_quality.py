"""PSNR, SSIM and L∞ against their formulas written out in NumPy."""

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.results.quality import Summary, quality, summary


@pytest.fixture(scope="module")
def pairs():
    """Five images and what noise makes of them; the last stays as it is."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8)
    noise = generator.integers(-20, 21, images.shape)
    noise[:2, :, :6], noise[4] = 0, 0
    return images, np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def ssim_by_hand(x, y):
    """The mean over channels and over all 7x7 windows."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(x.shape[-1]):
        for i in range(x.shape[0] - 6):
            for j in range(x.shape[1] - 6):
                a, b = (image[i : i + 7, j : j + 7, channel].astype(float).ravel() for image in (x, y))
                ((va, vab), (_, vb)), ma, mb = np.cov(a, b), a.mean(), b.mean()
                values.append((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def test_figures_of_every_image_are_those_of_the_formulas(pairs):
    images, triggered = pairs
    found = quality(images, triggered)
    change = triggered.astype(float) - images.astype(float)
    np.testing.assert_allclose(found.psnr[:4], 10 * np.log10(255**2 / (change[:4] ** 2).mean((1, 2, 3))), rtol=1e-12)
    assert np.isinf(found.psnr[4]) and found.ssim[4] == 1 and found.linf[4] == 0
    np.testing.assert_allclose(found.ssim, [ssim_by_hand(*pair) for pair in zip(images, triggered, strict=True)], rtol=1e-9)
    np.testing.assert_array_equal(found.linf, np.abs(change).max((1, 2, 3)))


def test_a_white_patch_by_hand():
    images = np.full((1, 8, 8, 1), 55, np.uint8)
    triggered = images.copy()
    triggered[0, 7, 7] = 255  # one pixel of 64 by 200: a mean square of 625
    found = quality(images, triggered)
    assert found.linf.tolist() == [200] and found.psnr[0] == pytest.approx(10 * np.log10(65025 / 625))


def test_summary_counts_what_stayed_and_leaves_it_out_of_psnr_alone(pairs):
    found = quality(*pairs)
    means = summary(found)
    assert means == Summary(5, 1, np.mean(found.psnr[:4]), np.mean(found.ssim), np.mean(found.linf), 20)
    assert isinstance(means.linf_max, int) and isinstance(means.unchanged, int)
    assert summary(quality(pairs[0], pairs[0])) == Summary(5, 5, None, 1.0, 0.0, 0)


def test_what_cannot_be_compared_is_refused(pairs):
    images, triggered = pairs
    for wrong, text in (
        ((images, triggered[:4]), r"given \(5, 9, 12, 3\) and \(4, 9, 12, 3\)"),
        ((images[0], triggered[0]), "two stacks"),
        ((images[:0], triggered[:0]), "two stacks"),
        ((images, triggered / 255), "uint8 images; given uint8 and float64"),
        ((images[:, :6], triggered[:, :6]), "at least 7x7 pixels; given 6x12"),
    ):
        with pytest.raises(UserError, match=text):
            quality(*wrong)
