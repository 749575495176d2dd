"""The row of a record: what is measured of a member, and what is not known."""

import json

import numpy as np

from bdjax.store.rows import blank, measured
from bdjax.train.evaluate import ByClass, Counts

OF_CLASSES = ByClass(*(np.array(values, np.int32) for values in ([4, 6], [3, 6], [0, 6], [0, 2], [0, 3])))


def test_counts_by_class_are_lists_of_whole_numbers_that_add_up_to_the_rates():
    totals = [np.int32(each.sum()) for each in OF_CLASSES]
    row = blank(**measured(Counts(*totals, np.array([3, 7], np.int32), OF_CLASSES)))
    assert row["acc"] == 0.9 and row["asr"] == 2 / 6 and row["ra"] == 0.5 and row["one_class"] == 0.7
    found = json.loads(row["by_class"])
    assert found == {name: each.tolist() for name, each in OF_CLASSES._asdict().items()}
    assert sum(found["correct"]) / sum(found["clean"]) == row["acc"]
    assert blank()["by_class"] is None  # infeasible, failed, or of an earlier version
