import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.channels import clipped, curve, kept, pruned_by_limit, published_norms, rounded, seen_through
from bdjax.models.cnn import cnn
from bdjax.models.mobilenet import mobilenet_v3_large
from bdjax.models.preact_resnet import preactresnet18
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import correct, logits, murky, pruned, under
from tests.defenses.plain_network import pixels, plain

KEY = jax.random.key(3)
LIMITS = np.r_[-1, 0, 1500, np.arange(3000, 6001, 250), 10_000]


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


@pytest.fixture(scope="module")
def soft(known):
    """Masks of all sizes, some of them exactly at a limit."""
    generator = np.random.default_rng(1)
    masks = {norm: generator.uniform(0, 1, known["params"][norm]["scale"].shape) for norm in ("bn1", "bn2", "bn3")}
    masks["bn3"][:6] = 0, 0.15, 0.3, 0.45, 0.6, 1
    return jax.tree.map(lambda m: m.astype(np.float32), masks)


whole_numbers = jax.jit(rounded)


def test_every_threshold_is_a_whole_number_in_single_precision():
    for step, count in ((0.05, 19), (0.02, 50)):
        whole = whole_numbers({"bn": (step * np.arange(count)).astype(np.float32)})["bn"]
        assert whole.dtype == jnp.int32 and whole.tolist() == [round(10_000 * step) * k for k in range(count)]
    near = whole_numbers({"bn": np.float32([0.05004, 0.05006, 0.04994])})["bn"]  # four decimals
    assert near.tolist() == [500, 501, 499]


def test_masks_are_clipped_to_the_unit_interval():
    assert jax.jit(clipped)({"bn": np.float32([-0.1, 0, 0.5, 1, 1.5])})["bn"].tolist() == [0, 0, 0.5, 1, 1]


def test_a_limit_prunes_what_lies_at_it_or_below():
    whole = {"a": np.int32([0, 1, 500, 501]), "b": np.int32([499, 10_000])}
    limits = np.int32([-1, 0, 499, 500, 10_000])
    keep = jax.jit(lambda whole, limit: kept(whole, limit, jnp.float32))
    masks = [keep(whole, limit) for limit in limits]
    assert [[m["a"].tolist(), m["b"].tolist()] for m in masks] == [
        [[1, 1, 1, 1], [1, 1]],
        [[0, 1, 1, 1], [1, 1]],
        [[0, 0, 1, 1], [0, 1]],
        [[0, 0, 0, 1], [0, 1]],
        [[0, 0, 0, 0], [0, 0]],
    ]
    assert jax.jit(pruned_by_limit)(whole, limits).tolist() == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("batch", [7, 256])
def test_the_curve_counts_what_each_pruned_network_gets_right(model, known, soft, clean, padded, wide, plain_spec, batch):
    rows = murky(clean(5, 4))
    more = padded(rows, 21)  # 57 rows, of which 16 are counted: most of the 9 batches have none
    held = np.asarray(rows.role) == 2
    images, labels = (np.asarray(x)[held] for x in (pixels(rows), rows.labels))
    variables = plain(wide(known))
    expected = [
        correct(plain_spec, {**variables, "params": under(variables["params"], pruned(soft, limit, False))}, images, labels)
        for limit in LIMITS
    ]
    assert expected[0] > 8 and expected[-1] < 6 and len(set(expected)) > 2, "the case must have a curve"
    counted = jax.jit(curve(model, batch, False))
    role, whole, limits = np.asarray(more.role), whole_numbers(soft), LIMITS.astype(np.int32)
    found = counted(KEY, variables, more, role == 2, whole, limits)
    assert found.dtype == jnp.int32 and found.tolist() == expected
    none = counted(KEY, variables, more, role == 7, whole, limits)
    assert none.tolist() == [0] * len(LIMITS)


def test_augmented_rows_are_drawn_anew_for_each_limit(tiny_spec, known, soft, clean):
    rows = clean(25)
    same = np.full(6, -1, np.int32)  # nothing is pruned: only the crops differ
    network = cnn(tiny_spec._replace(pad=3), 4, lowering="unrolled")
    still, moving = (jax.jit(curve(network, 64, augment)) for augment in (False, True))
    asked = known, rows, np.asarray(rows.role) == 1, whole_numbers(soft), same
    assert len(set(still(KEY, *asked).tolist())) == 1
    found = moving(KEY, *asked)
    assert len(set(found.tolist())) > 2 and found.tolist() != moving(jax.random.key(4), *asked).tolist()


def test_published_norms_are_those_of_most_networks(tiny_spec, model):
    assert published_norms(model) is model
    spec = tiny_spec._replace(image_shape=(32, 32, 3))
    assert published_norms(preactresnet18(spec)) is preactresnet18(spec)
    mobile = mobilenet_v3_large(spec)
    assert (mobile.norm_eps, mobile.norm_momentum) == (1e-3, 0.01)
    copied = published_norms(mobile)
    assert (copied.norm_eps, copied.norm_momentum, copied.name, copied.arch) == (1e-5, 0.1, mobile.name, mobile.arch)


def test_other_norms_are_seen_through_the_scales(model, known, soft, clean, wide, plain_spec, distance):
    own, variables, images = model.rebuild(norm_eps=1e-3), plain(wide(known)), pixels(clean(3))
    apply = jax.jit(own.apply)
    small = {**variables["batch_stats"], "bn2": {**variables["batch_stats"]["bn2"], "var": np.full(8, 1e-4)}}
    masked = {"params": under(variables["params"], plain(wide(soft))), "batch_stats": small}
    found = jax.jit(lambda masked: seen_through(own, 1e-5, masked))(masked)
    expected = logits(plain_spec, masked["params"], small, images, 1e-5)
    assert distance(apply(found, images).logits, expected) < 1e-10
    assert distance(apply(masked, images).logits, expected) > 1e-2  # what a network keeps that is not looked through
    np.testing.assert_array_equal(np.asarray(found["params"]["bn3"]["scale"][0]), 0)  # what is pruned stays so
    assert seen_through(model, 1e-5, masked) is masked
