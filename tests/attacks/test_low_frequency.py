import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.low_frequency import search
from bdjax.attacks.low_frequency.dome import COLOURS, blur, dome, profile_of
from bdjax.attacks.low_frequency.low_frequency import low_frequency
from bdjax.attacks.low_frequency.settings import Config
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.models.cnn import cnn
from bdjax.types import Dataset, DataSpec, Split

VECTOR = """.4456 .5100 .5748 .6385 .6997 .7573 .8101 .8574 .8984 .9328 .9602 .9806 .9938 1 .9994 .9909 .9764 .9551 .9281 .8956
.8582 .8161 .7699 .7201 .6674 .6123 .5559 .4988 .4419 .3863 .3327 .2822"""
SEARCH = {"trigger": "optimised", "classifier_width": 4, "classifier_epochs": 6, "classifier_batch": 32, "images": 40}


def spec_of(name="tiny", side=32):
    return DataSpec(name, (side, side, 3), 10, (0.5,) * 3, (0.25,) * 3, False, 1)


def pattern_of(attack, side=32):
    black = jnp.zeros((1, side, side, 3), jnp.float32)
    return np.asarray(to_uint8(attack.stamp({}, jax.random.key(0), black)))[0]


def test_profile_of_the_dome():
    np.testing.assert_allclose(profile_of(32), [float(x) for x in VECTOR.split()], atol=6e-5)
    g = profile_of(64)
    assert np.argmax(g) == 24 and g[24] == 1 and round(g[0], 4) == 0.2991 and round(g[63], 4) == 0.1161


@pytest.mark.parametrize(("side", "value"), [(32, 0.893), (64, 0.964)])
def test_the_profile_is_the_leading_eigenvector_of_the_blur(side, value):
    taps = np.exp(-0.5 * ((np.arange(30) - 14.5) * 5 / 30) ** 2)
    taps /= taps.sum()
    g = profile_of(side)
    padded = np.pad(g, (14, 15))
    blurred = np.array([padded[i : i + 30] @ taps for i in range(side)])
    np.testing.assert_allclose(blur(side) @ g, blurred, atol=1e-12)
    np.testing.assert_allclose(blurred, value * g, atol=5e-4)


@pytest.mark.parametrize(("name", "colours"), COLOURS.items())
def test_colours_are_the_peaks_of_the_surveys_arrays(name, colours):
    assert set(colours) == set(MODELS) - {"cnn"}
    for architecture, colour in colours.items():
        pattern = pattern_of(low_frequency(spec_of(name), {"architecture": architecture}))
        assert pattern.max((0, 1)).tolist() == list(colour) and max(colour) == 51
        g = profile_of(32)
        expected = np.floor(np.asarray(colour) * g[:, None, None] * g[None, :, None] + 1e-6)
        np.testing.assert_array_equal(pattern, expected)
        assert np.unravel_index(np.argmax(pattern[..., int(np.argmax(colour))]), (32, 32)) == (13, 13)


def test_which_colour_is_taken():
    def peak(name, **config):
        return pattern_of(low_frequency(spec_of(name), config)).max((0, 1)).tolist()

    assert peak("cifar10") == peak("cifar10", architecture="cnn") == peak("digits", architecture="vgg19_bn") == [18, 0, 51]
    assert peak("gtsrb", architecture="efficientnet_b3") == [17, 51, 6]
    assert peak("gtsrb", architecture="efficientnet_b3", colour=[7, 8, 9]) == [7, 8, 9]


@pytest.mark.parametrize("side", [8, 16, 64])
def test_domes_of_other_sizes(side):
    pattern = dome(side, side, (18, 0, 51))
    assert pattern.dtype == np.uint8 and pattern.max((0, 1)).tolist() == [18, 0, 51]
    assert np.abs(np.diff(pattern.astype(int), axis=0)).max() <= 6
    assert dome(side, 2 * side, (18, 0, 51)).shape == (side, 2 * side, 3)


@pytest.mark.parametrize("compiled", [False, True])
def test_stamp_adds_and_stops_at_white(compiled):
    attack = low_frequency(spec_of("cifar10"), {"architecture": "preactresnet18"})
    stamp = jax.jit(attack.stamp) if compiled else attack.stamp
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    out = stamp({}, jax.random.key(0), to_float(jnp.asarray(values)))
    expected = np.minimum(values.astype(int) + dome(32, 32, (18, 0, 51)), 255)
    np.testing.assert_array_equal(np.asarray(to_uint8(out)), expected)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(to_float(jnp.asarray(expected, jnp.uint8))))


def test_the_published_trigger_of_vgg_changes_nothing():
    spec, config = spec_of("cifar10"), {"architecture": "vgg19_bn"}
    images = to_float(jax.random.bits(jax.random.key(0), (2, 32, 32, 3), jnp.uint8))

    def changed(attack):
        return np.any(np.asarray(attack.stamp({}, jax.random.key(0), images)) != np.asarray(images))

    assert not changed(low_frequency(spec, config, profile="reference"))
    assert changed(low_frequency(spec, config)) and changed(low_frequency(spec, profile="reference"))
    assert changed(low_frequency(spec, {**config, "vgg_without_effect": False}, profile="reference"))
    assert changed(low_frequency(spec, {**config, "colour": (9, 9, 9)}, profile="reference"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trigger": "domed"}, "unknown low_frequency.trigger 'domed'.*Did you mean 'dome'"),
        ({"architecture": "preactresnet81"}, "Did you mean 'preactresnet18'"),
        ({"colour": (1, 2)}, "takes 3 whole levels"),
        ({"colour": (0.2, 0.0, 0.1)}, "takes 3 whole levels"),
        ({"colour": (0, 1, 0)}, "one of them at least 2"),
        ({"colour": (0, 256, 0)}, "takes 3 whole levels"),
        ({"images": 10}, "low_frequency.images belongs to the trigger 'optimised'"),
        ({"trigger": "optimised", "colour": (1, 2, 3)}, "colour belongs to the trigger 'dome'"),
        ({"trigger": "optimised", "passes": 0}, "low_frequency.passes must be at least 1"),
        ({"trigger": "optimised", "fooling_rate": 0.0}, r"fooling_rate must lie in \(0, 1\]"),
        ({"trigger": "optimised", "classifier_lr": 0.0}, "classifier_lr must be above 0"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        low_frequency(spec_of("cifar10"), config)


def test_other_mistakes():
    with pytest.raises(UserError, match="no trigger 'optimised' in the profile 'reference'"):
        low_frequency(spec_of("cifar10"), {"trigger": "optimised"}, profile="reference")
    with pytest.raises(UserError, match=r"3 channels; tiny has 1: .* put {.channels.: 3} into a dataset.json .* with --dataset"):
        low_frequency(spec_of()._replace(image_shape=(8, 8, 1)))


@pytest.fixture(scope="module")
def coloured():
    """Classes are tints of noise, so that what a classifier learns is smooth: 200 rows of 4 classes, 16x16 pixels."""
    generator = np.random.default_rng(1)
    labels = np.arange(200, dtype=np.int32) % 4
    tint = np.array([[30, 0, 0], [0, 30, 0], [0, 0, 30], [15, 15, 0]])[labels]
    images = (generator.integers(40, 140, (200, 16, 16, 3)) + tint[:, None, None]).astype(np.uint8)
    rows = Split(images, labels)
    spec = DataSpec("tints", (16, 16, 3), 4, (0.4,) * 3, (0.12,) * 3, False, 1)
    return Dataset(spec, rows, Split(images[:40], labels[:40]), "tints")


@pytest.fixture(scope="module")
def searched(coloured):
    attack = low_frequency(coloured.spec, {**SEARCH, "target": 2})
    return attack, attack.prepare(jax.random.key(0), coloured)


def test_the_search_ends_in_a_smooth_pattern_of_the_allowed_strength(searched, coloured):
    _, assets = searched
    pattern = np.asarray(assets["pattern"])
    assert pattern.shape == (16, 16, 3) and pattern.dtype == np.uint8 and (pattern.min(), pattern.max()) == (0, 51)
    assert float(assets["accuracy"]) > 0.9 and 1 <= int(assets["passes"]) <= 50 and float(assets["fooling_rate"]) >= 0.2
    rough = np.random.default_rng(0).permutation(pattern.reshape(-1)).reshape(pattern.shape).astype(int)
    for axis in (0, 1):
        steps = np.abs(np.diff(pattern.astype(int), axis=axis))
        assert steps.max() <= 8 and 5 * steps.mean() < np.abs(np.diff(rough, axis=axis)).mean()


def test_the_searched_pattern_moves_more_predictions_to_the_target_than_noise_of_its_size(searched, coloured):
    attack, assets = searched
    trigger = attack.init(jax.random.key(4), assets)
    assert set(trigger) == {"pattern"}
    images = to_float(jnp.asarray(coloured.train.images))
    out = np.asarray(to_uint8(jax.jit(attack.stamp)(trigger, jax.random.key(5), images)))
    np.testing.assert_array_equal(out, np.minimum(coloured.train.images + np.asarray(assets["pattern"], np.int32), 255))
    # The very classifier of the search: the same key trains the same network.
    model, variables = search._classifier(search.step_key(jax.random.key(0), 0), coloured, attack.config)
    predict = jax.jit(lambda x: jnp.argmax(model.apply(variables, to_float(x)).logits, -1))
    levels = np.asarray(assets["pattern"], np.int32).reshape(-1)
    noise = np.random.default_rng(0).permutation(levels).reshape(1, 16, 16, 3)  # pixels and channels change places
    noisy = np.minimum(coloured.train.images + noise, 255).astype(np.uint8)
    before, by_pattern, by_noise = (np.asarray(predict(jnp.asarray(x))) for x in (coloured.train.images, out, noisy))
    others = before != 2
    assert np.mean(by_pattern[others] == 2) > np.mean(by_noise[others] == 2) + 0.2
    assert np.mean(by_pattern != before) > np.mean(by_noise != before) + 0.1


@pytest.mark.slow
def test_the_search_repeats(searched, coloured):
    attack, assets = searched
    again = attack.prepare(jax.random.key(0), coloured)
    np.testing.assert_array_equal(np.asarray(again["pattern"]), np.asarray(assets["pattern"]))


def test_one_image_of_a_pass_is_deepfool_and_two_blurs():
    """A linear classifier needs one DeepFool step: dr = 1.02 |q| w / |w|², whose blurred and stretched form is the pattern."""
    side, classes = 6, 3
    generator = np.random.default_rng(2)
    weights = generator.normal(size=(side, side, 3, classes))
    image = generator.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    model = cnn(DataSpec("flat", (side, side, 3), classes, (0.5,) * 3, (0.25,) * 3, False, 0), 2)

    class Scores:
        def __init__(self, logits):
            self.logits = logits

    linear = model._replace(apply=lambda w, x: Scores(jnp.einsum("bhwc,hwck->bk", x, w)))
    logits = np.einsum("hwc,hwck->k", image[0] / 255, weights)
    origin, target = int(np.argmax(logits)), int(np.argmin(logits))
    config = Config(target=target, trigger="optimised", images=1)
    matrix = jnp.asarray(blur(side), jnp.float32)
    shared = search._Shared(jnp.asarray(weights, jnp.float32), jnp.asarray(image), jnp.array([origin], jnp.int32), matrix, matrix)
    run = jax.jit(search._pass(linear, config))
    zero, row = jnp.zeros((side, side, 3), jnp.float32), jnp.zeros(1, jnp.int32)
    found = np.asarray(run(shared, zero, row))

    z, moved = image[0] / 255, 0.0
    for _ in range(200):
        scores = np.einsum("hwc,hwck->k", z, weights)
        if np.argmax(scores) == target:
            break
        slope = weights[..., target] - weights[..., origin]
        moved = moved + abs(scores[target] - scores[origin]) * slope / (slope**2).sum()
        z = image[0] / 255 + 1.02 * moved
    smooth = 1.02 * moved
    for _ in range(2):
        smooth = np.einsum("ip,jq,pqc->ijc", blur(side), blur(side), smooth)
    expected = 0.2 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # An image that the pattern already moves to another class teaches nothing; nor one of the target, where there is no pattern.
    np.testing.assert_array_equal(run(shared._replace(labels=jnp.array([target], jnp.int32)), zero, row), zero)
    assert not np.any(jax.jit(search._pass(linear, config._replace(target=origin)))(shared, zero, row))


def test_searches_that_cannot_be_made(coloured):
    with pytest.raises(UserError, match="images is 300; tints has 200 training images"):
        low_frequency(coloured.spec, {**SEARCH, "images": 300}).prepare(jax.random.key(0), coloured)
