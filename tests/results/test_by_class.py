"""Counts by class: pooled over the runs of a defense at the largest ratio, beside what its networks were before."""

import json

import numpy as np
import polars as pl

from bdjax.results.by_class import COUNTS, pooled
from tests.reporting.conftest import SPEC, row


def counts(correct, attacked):
    """Three classes of ten clean images; the first is the target."""
    each = ([10, 10, 10], correct, [0, 10, 10], attacked, [0, 10 - attacked[1], 10 - attacked[2]])
    return json.dumps(dict(zip(COUNTS, each, strict=True)))


def told(rows):
    return pl.DataFrame(rows, schema={**SPEC, "by_class": pl.String}, orient="row")


def made(before=True):
    rows = []
    for ratio in (0.05, 0.1):
        for seed in (0, 1):
            base = counts([9, 9, 9], [0, 10, 10]) if before else None
            rows.append(row(seed, ratio, "badnets", "none", None, None, None) | {"by_class": base})
            for spc in (2, 10):
                after = counts([9, 8 - seed, 1], [0, 2, seed]) if (spc, ratio) == (10, 0.1) else counts([0, 0, 0], [0, 0, 0])
                rows.append(row(seed, ratio, "badnets", "ft", spc, 0.6, 0.1) | {"by_class": after})
    return told(rows)


def test_the_runs_of_the_largest_ratio_with_the_most_clean_samples_are_added_up():
    (found,) = pooled(made())
    assert (found.title, found.ratio, found.spc, found.runs) == ("ft", 0.1, 10, 2)
    assert found.after.clean.tolist() == [20, 20, 20] and found.after.correct.tolist() == [18, 15, 2]
    assert found.after.attacked.tolist() == [0, 4, 1] and found.before.attacked.tolist() == [0, 20, 20]
    rates = found.after.rates()
    np.testing.assert_allclose(rates.acc, [0.9, 0.75, 0.1])
    np.testing.assert_allclose(rates.asr, [np.nan, 0.2, 0.05])
    assert found.after.mistakes().tolist() == [2, 5 + 4, 18 + 1]


def test_choices_of_a_hyper_parameter_stay_apart():
    ft = pl.col("defense") == "ft"
    rows = [made().filter(ft).with_columns(hyper=pl.lit(json.dumps({"lr": lr}))) for lr in (0.1, 0.01)]
    found = pooled(pl.concat([made().filter(~ft), *rows]))
    assert [(one.title, one.runs) for one in found] == [("ft, lr 0.1", 2), ("ft, lr 0.01", 2)]


def test_what_is_not_known_is_left_out():
    assert pooled(made().drop("by_class")) == []
    assert pooled(made(before=False))[0].before is None
    failed = pl.when(pl.col("seed") == 1).then(pl.lit("failed")).otherwise(pl.col("status")).alias("status")
    assert pooled(made().with_columns(failed))[0].runs == 1
    assert pooled(made().with_columns(by_class=pl.lit(None, pl.String))) == []
