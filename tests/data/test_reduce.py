"""Reduced sets: balanced, nested, ordered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.data import load
from bdjax.data.reduce import quotas, reduced_rows
from bdjax.errors import UserError


def test_quotas_by_hand():
    counts = np.array([5, 2, 9])
    assert quotas(counts, 6).tolist() == [2, 2, 2]
    assert quotas(counts, 7).tolist() == [3, 2, 2]
    assert quotas(counts, 11).tolist() == [5, 2, 4]
    assert quotas(counts, 16).tolist() == [5, 2, 9]
    assert quotas(counts, 0).tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=6), st.data())
def test_quotas_sum_up_and_rise(counts, data):
    counts = np.array(counts)
    total = data.draw(st.integers(0, int(counts.sum())))
    share = quotas(counts, total)
    assert share.sum() == total and (share <= counts).all()
    if total < counts.sum():
        assert (quotas(counts, total + 1) >= share).all()


def test_reduced_sets_are_balanced_ordered_and_nested():
    whole = load("digits")
    small, large = load("digits", train_images=100), load("digits", train_images=203, test_images=50)
    assert np.bincount(small.train.labels).tolist() == [10] * 10
    assert np.bincount(large.train.labels).tolist() == [21] * 3 + [20] * 7
    assert np.bincount(large.test.labels).tolist() == [5] * 10
    assert len(small.test.labels) == 360
    labels = np.asarray(whole.train.labels)
    few, more = reduced_rows("train", labels, 10, 100), reduced_rows("train", labels, 10, 203)
    assert (np.diff(more) > 0).all() and set(few) < set(more)
    np.testing.assert_array_equal(large.train.images, whole.train.images[more])
    assert len({whole.digest, small.digest, large.digest}) == 3
    assert load("digits", train_images=100).digest == small.digest
    assert load("digits", train_images=1437).digest == whole.digest


def test_the_draw_of_published_results_has_not_moved():
    assert reduced_rows("train", np.arange(40) % 4, 4, 6).tolist() == [5, 8, 14, 17, 24, 27]


@pytest.mark.parametrize("argument", ["train_images", "test_images"])
@pytest.mark.parametrize("size", [-1, 0, 9, 1438])
def test_sizes_out_of_range_are_refused(argument, size):
    with pytest.raises(UserError, match=rf"{argument} is {size}; digits allows 10 \(one per class\) to (1437|360) "):
        load("digits", **{argument: size})
