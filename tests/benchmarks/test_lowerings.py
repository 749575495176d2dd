"""Every candidate of the lowering table computes the same convolution, and a wrong one is found out."""

import jax
import jax.numpy as jnp
import pytest

from bdjax.nn import lowerings as package
from benchmarks import lowering_candidates, lowerings
from benchmarks.lowering_candidates import DIRECTIONS, candidates, over_members
from benchmarks.lowering_summary import summary
from benchmarks.shapes import Shape

SMALL = {
    "dense": (Shape("dense", "dense", 3, 1, 2, 3, 4), {"native", "patches", "packed 2", "packed 4", "native, vmap"}),
    "strided": (Shape("strided", "dense", 3, 2, 2, 3, 5), {"native", "patches", "shifted products", "row patches"}),
    "pointwise": (Shape("pointwise", "pointwise", 1, 2, 3, 2, 4), {"native", "einsum", "product", "product, vmap"}),
    "depthwise": (Shape("depthwise", "depthwise", 5, 2, 4, 4, 2), {"native", "multiply-add", "live multiply-add", "patches"}),
}
ONLY_FOR = {
    ("dense", "kernel gradient"): {"canonical", "canonical, moved first", "row products"},
    ("strided", "input gradient"): {"phases"},
    ("strided", "kernel gradient"): {"canonical", "canonical, moved first"},
    ("pointwise", "input gradient"): {"phases"},
}


PAIRS = [
    pytest.param(kind, direction, marks=[pytest.mark.slow] * ((kind, direction) != ("dense", "output")))
    for kind in SMALL
    for direction in DIRECTIONS
]


@pytest.mark.parametrize(("kind", "direction"), PAIRS)
def test_all_candidates_agree(kind, direction):
    """``compare`` raises where one does not; members are covered by one kind, the others add formulations."""
    shape, expected = SMALL[kind]
    expected = expected | ONLY_FOR.get((kind, direction), set())
    names = [c.name for c in candidates(shape, direction, 1) if kind == "dense" or c.how == "unrolled" or c.name in expected]
    rows = lowerings.compare(shape, direction, 2, 1, jnp.dtype("float32"), only=names, rounds=1)
    assert {row["candidate"] for row in rows} >= expected
    for row in rows:
        assert row["error"] < 1e-5 and row["GFLOP/s"] > 0, row


@pytest.mark.slow
def test_bfloat16():
    rows = lowerings.compare(SMALL["dense"][0], "output", 2, 1, jnp.dtype("bfloat16"), only=["native", "patches"], rounds=1)
    assert [row["candidate"] for row in rows] == ["native", "patches"]
    assert all(0 < row["error"] < 0.05 for row in rows)


def test_a_wrong_candidate_is_an_error(monkeypatch):
    def halved(x, kernel, stride, padding):
        return package.patches(x, kernel / 2, stride, padding)

    monkeypatch.setitem(lowering_candidates._FORMULATIONS["dense"], "patches", halved)
    with pytest.raises(ArithmeticError, match="patches, output"):
        lowerings.compare(SMALL["dense"][0], "output", 2, 1, jnp.dtype("float32"), only=["patches"], rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_loop_keeps_its_convolution(direction):
    """The compiler moves work out of a loop where it can prove it the same in every trip; then the loop would time nothing."""
    shape, _ = SMALL["dense"]
    looped = next(c for c in candidates(shape, direction, 1) if c.name == "native, in a scan")
    a, b = lowerings._data(shape, direction, 2, 1, jnp.float32)
    text = jax.jit(over_members(looped)).lower(a, b).compile().as_text()
    inner, entry = text.split("\nENTRY ")
    assert " while(" in entry and " convolution(" in inner and " convolution(" not in entry


def test_pruning_leaves_out_what_was_far_behind():
    rows = [{"candidate": "a", "ms": 1.0}, {"candidate": "b", "ms": 1.9}, {"candidate": "c", "ms": 2.1}, {"candidate": "d"}]
    assert lowerings._far_behind(rows, 2.0) == {"c"}
    assert lowerings._far_behind(rows, 0.0) == set()
    found = lowerings.compare(
        SMALL["pointwise"][0], "output", 1, 1, jnp.dtype("float32"), ["native", "product"], 1, frozenset({"product"})
    )
    assert ["ms" in row for row in found] == [True, False]
    assert found[1]["not run"] == "far behind with fewer members"


def test_summary_names_the_fastest_usable():
    common = {"shape": "s", "count": 3, "kind": "dense", "direction": "output", "members": 1}
    rows = [
        {**common, "candidate": "native", "contends": True, "of ceiling": 0.25},
        {**common, "candidate": "patches", "contends": True, "of ceiling": 0.5},
        {**common, "candidate": "native NCHW", "contends": False, "of ceiling": 0.75},
        {**common, "candidate": "packed 2", "contends": True, "not run": "needs too much memory"},
    ]
    text = summary(rows)
    assert "| s | 3 | patches 0.5 |" in text
    assert "| dense | output | 1 | native | 0.25 | 0.5 | 1 |" in text
    assert "| dense | output | 1 | native NCHW | 0.75 | 1.5 | 1 |" in text
