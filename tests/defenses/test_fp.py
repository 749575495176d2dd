import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.defenses.fp.fp import FPHyper, fp
from bdjax.defenses.fp.levels import choose_level, levels
from bdjax.errors import UserError
from bdjax.types import DefenderView
from tests.defenses.plain_eval import knowing
from tests.later import some_later

KEY = jax.random.key(3)
SHORT = {"epochs": 2, "batch": 16}


@pytest.mark.parametrize(("features", "step", "count"), [(512, 6, 86), (25_088, 251, 100), (1536, 16, 96), (700, 7, 100)])
def test_levels(features, step, count):
    found, reference = levels(features, 0.01, False), levels(features, 0.01, True)
    assert found.shape == reference.shape == (count,) and found.dtype == np.int32
    assert found[:4].tolist() == [0, step, 2 * step, 3 * step] and found[-1] < features
    assert reference[:4].tolist() == [0, step - 1, 2 * step - 1, 3 * step - 1]


def test_levels_of_the_papers_network():
    assert levels(512, 0.01, False)[:4].tolist() == [0, 6, 12, 18]
    assert levels(512, 0.01, True)[[0, 1, 2, 3, -1]].tolist() == [0, 5, 11, 17, 509]


choice = jax.jit(choose_level, static_argnames=("rise_stops", "keep_failing_level"))


def level(correct, tolerance=0.1, reference=False):
    found = choice(np.array(correct, np.int32), np.float32(tolerance), rise_stops=reference, keep_failing_level=reference)
    assert found.dtype == jnp.int32
    return int(found)


@pytest.mark.parametrize(
    ("correct", "corrected", "reference"),
    [
        ([10, 9, 9, 8, 9], 2, 3),  # 9 of 10 is a drop of exactly a tenth and passes
        ([100, 90, 89], 1, 2),
        ([90, 81, 80], 1, 2),
        ([80, 72, 71], 1, 2),
        ([5, 6, 5, 4], 2, 1),  # a rise by a fifth stops the published code alone
        ([10, 11, 10], 2, 2),
        ([10, 10, 10], 2, 2),  # no level fails: the last one
        ([10, 0, 10], 0, 1),
        ([0, 3, 3], 0, 0),  # nothing correct: unpruned
    ],
)
def test_choice_of_the_level(correct, corrected, reference):
    assert level(correct) == corrected
    assert level(correct, reference=True) == reference


def test_a_tolerance_below_zero_prunes_nothing():
    assert level([10, 10], -0.5) == 0


@settings(deadline=None, max_examples=60)
@given(
    correct=st.lists(st.integers(0, 20_000), min_size=6, max_size=6),
    tolerance=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.3333, 1.0]),
    reference=st.booleans(),
)
def test_the_rule_is_exact(correct, tolerance, reference):
    accepted, last = Fraction(str(tolerance)), 0
    for k, c in enumerate(correct):
        drop = Fraction(correct[0] - c)
        if (abs(drop) if reference else drop) > accepted * correct[0]:
            last = k if reference else k - 1
            break
        last = k
    assert level(correct, tolerance, reference) == (last if correct[0] else 0)


@functools.cache
def compiled(model, profile, **config):
    defense = fp(model, {**SHORT, **config}, profile=profile)
    return jax.jit(lambda view, hyper: defense.defend(KEY, view, hyper))


def defend(model, variables, rows, profile="corrected", hyper=None, **config):
    return compiled(model, profile, **config)(DefenderView(variables, rows), hyper or FPHyper())


@pytest.fixture(scope="module")
def trained(plain_spec, variables, clean):
    """A network that knows the rows, so that pruning costs accuracy somewhere."""
    return knowing(plain_spec, variables, clean(10))


def written_out(model, variables, rows, off_by_one, keep_failing_level):
    """Levels, correct rows and the mask, one level after the other in NumPy; a twentieth is tolerated."""
    head = jax.jit(lambda variables, images: model.apply(variables, images, record=("head",)).taps["head"])
    inputs = np.asarray(head(variables, np.asarray(rows.images, np.float32) / 255), np.float64)
    kernel, bias = (np.asarray(variables["params"]["linear"][n], np.float64) for n in ("kernel", "bias"))
    role, labels = np.asarray(rows.role), np.asarray(rows.labels)
    order = np.argsort(inputs[role == 1].mean(0), kind="stable")
    masks, correct = [], []
    for k in range(inputs.shape[1]):  # 16 inputs: one per level
        keep = np.ones(inputs.shape[1])
        keep[order[: max(k - off_by_one, 0)]] = 0
        predicted = np.argmax(inputs[role == 2] @ (kernel * keep[:, None]) + bias, 1)
        masks.append(keep)
        correct.append(int((predicted == labels[role == 2]).sum()))
        if k and 20 * abs(correct[k] - correct[0]) > correct[0] and keep_failing_level:
            return correct, k, keep
        if k and 20 * (correct[0] - correct[k]) > correct[0] and not keep_failing_level:
            return correct, k - 1, masks[k - 1]
    return correct, len(masks) - 1, masks[-1]


@pytest.mark.parametrize("profile", some_later(["corrected", "reference"], ["reference"]))
def test_pruning_is_the_one_written_out(model, trained, clean, padded, profile, distance):
    # Without augmentation the profiles differ in counts and rule alone, though "reference" takes another way through the rows.
    rows = clean(6, 4)
    reference = profile == "reference"
    correct, chosen, keep = written_out(model, trained, rows, int(reference), reference)
    found = defend(model, trained, padded(rows, 25), profile, FPHyper(tolerance=np.float32(0.05)))
    assert 0 < chosen < 15, "the case must be one that stops on the way"
    assert int(found.trace.level) == chosen and int(found.trace.validation) == 16
    assert found.trace.correct.tolist()[: len(correct)] == correct
    assert found.trace.pruned.tolist() == [max(k - reference, 0) for k in range(16)]
    assert list(found.masks) == ["linear"] and found.masks["linear"].tolist() == keep.tolist()
    kernel = np.asarray(found.variables["params"]["linear"]["kernel"])
    assert np.all(kernel[keep == 0] == 0) and np.all(np.abs(kernel[keep == 1]).sum(1) > 0)
    assert distance(found.variables["params"]["conv1"], trained["params"]["conv1"]) > 0  # tuned


def test_only_training_rows_rank_the_inputs(model, trained, clean):
    # Two levels and a tolerance of 1: half of the inputs go, and which ones is the ranking alone.
    rows = clean(2, 8)

    def mask(role):
        # The rows of this role are mirrored and get a white left half; role 0 has none.
        of_role, images = np.asarray(rows.role) == role, np.asarray(rows.images)
        changed = images.copy()
        changed[of_role] = images[of_role][:, :, ::-1]
        changed[of_role, :, :4] = 255
        found = defend(model, trained, rows._replace(images=changed), hyper=FPHyper(tolerance=np.float32(1)), granularity=0.5)
        assert found.trace.pruned.tolist() == [0, 8] and int(found.trace.level) == 1
        return found.masks["linear"].tolist()

    assert mask(2) == mask(0) != mask(1)


@pytest.mark.slow  # compiling two programs; the pruning written out has no absent rows either
def test_absent_rows_change_nothing(model, trained, clean, padded, wide, distance):
    rows, hyper = clean(6, 4), FPHyper(*(np.float64(x) for x in FPHyper()))
    alone = defend(model, wide(trained), rows, hyper=hyper)
    among = defend(model, wide(trained), padded(rows, 25), hyper=hyper)
    assert distance(among.variables, alone.variables) < 1e-12
    assert distance(among.masks, alone.masks) == 0 and among.trace.correct.tolist() == alone.trace.correct.tolist()


def test_mistakes_are_named(model):
    with pytest.raises(UserError, match=r"fp\.granularity must lie in \(0, 1\]; given 0"):
        fp(model, {"granularity": 0})
    with pytest.raises(UserError, match="Did you mean 'keep_failing_level'"):
        fp(model, {"keep_failing_levels": True})
