"""The embedded digits: upsampling by hand, a fixed split, constants of the training rows."""

import numpy as np

from bdjax.data import load
from bdjax.data.arrays import moments
from bdjax.data.digits import held_out, upsample


def test_upsampling_by_hand():
    out = upsample(np.array([[[0, 16], [8, 0]]], np.int32))
    # rows and columns are weighted 1, 3/4, 1/4, 0; in sixteenths of a sixteenth: 256 is white
    values = np.array([[0, 64, 192, 256], [32, 72, 152, 192], [96, 88, 72, 64], [128, 96, 32, 0]])
    np.testing.assert_array_equal(out[0, ..., 0], (255 * values + 128) // 256)
    assert out.shape == (1, 4, 4, 3) and out.dtype == np.uint8
    assert (out == out[..., :1]).all()


def test_the_split_is_fixed_stratified_and_needs_no_folder(monkeypatch):
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("BDJAX_CACHE_DIR", "/dev/null/nowhere")  # the embedded data touch no cache
    digits = load("digits")
    assert digits.train.images.shape == (1437, 16, 16, 3) and digits.test.images.shape == (360, 16, 16, 3)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
    every = np.bincount(digits.train.labels) + np.bincount(digits.test.labels)
    assert np.abs(np.bincount(digits.test.labels) - every * 360 / 1797).max() < 1
    assert digits.train.images.max() == 255 and digits.train.images.min() == 0


def test_held_out_rows_are_spread_over_the_class():
    labels = np.array([0] * 6 + [1] * 4, np.int32)
    assert held_out(labels, 5).tolist() == [False, True, False, True, False, True, False, True, False, True]


def test_constants_are_those_of_the_training_rows():
    digits = load("digits")
    mean, std = moments(np.asarray(digits.train.images))
    np.testing.assert_allclose(digits.spec.mean, mean, atol=1e-6)
    np.testing.assert_allclose(digits.spec.std, std, atol=1e-6)
    assert digits.spec.pad == 2 and digits.spec.flip is False
