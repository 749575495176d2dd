import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.ssba.networks import decode, drawers, encode, enlarged, size
from bdjax.attacks.ssba.ssba import secret, ssba
from bdjax.attacks.ssba.training import Measured, Settings, check, embed, ramp_of, train, weight_at
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError

module = importlib.import_module("bdjax.attacks.ssba.ssba")  # the package exports the factory by this name

SMALL = {"width": 8, "bits": 1, "epochs": 80, "batch": 16, "lr": 1e-3}  # 800 steps on the 160 rows of 8x8 pixels
SETTINGS = Settings(**SMALL, ramp=None)
FINE = Measured(jnp.float32(0.99), jnp.float32(0.01), jnp.float32(10), jnp.int32(5), jnp.array([1, 2], jnp.int32))


@pytest.fixture(scope="module")
def trained(tiny_dataset):
    """(parameters of both networks, what they reached)"""
    return train(jax.random.key(9), tiny_dataset.train.images, SETTINGS)


def shaped(width, bits, shape):
    drawn = drawers(width, bits, shape)
    return {name: jax.eval_shape(draw, jax.random.key(0))["params"] for name, draw in drawn.items()}


@pytest.mark.parametrize(("side", "decoder"), [(32, 441_284), (64, 637_892)])
def test_parameter_counts(side, decoder):
    params = shaped(32, 100, (side, side, 3))
    assert size(params["encoder"]) == 1_069_315 and size(params["decoder"]) == decoder


@pytest.mark.parametrize("side", [8, 16, 28, 64])
def test_any_size_keeps_its_shape_and_range(side):
    params = shaped(2, 5, (side, side, 3))
    images, bits = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1, 5), jnp.float32)
    out = jax.eval_shape(lambda p, s, x: encode(p, 2, s, x), params["encoder"], bits, images)
    read = jax.eval_shape(lambda p, x: decode(p, 2, 5, x), params["decoder"], images)
    assert (out.shape, out.dtype, read.shape) == (images.shape, jnp.float32, (2, 5))


def test_kernels_and_biases_start_uniform_in_the_fan_in():
    params = jax.jit(drawers(8, 100, (32, 32, 3))["encoder"])(jax.random.key(3))["params"]
    for name, fan_in in (("c1", 9 * 6), ("u6", 4 * 64), ("c9", 9 * (8 + 8 + 6)), ("out", 8)):
        layer, bound = params[name]["conv"], fan_in**-0.5
        for leaf in layer.values():
            assert 0.5 * bound < np.abs(leaf).max() <= bound  # biases of 3 numbers too
    assert params["secret"]["kernel"].shape == (100, 768)


def test_enlarged_repeats_and_cuts():
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    out = enlarged(jnp.asarray(x), jnp.zeros((1, 4, 5, 7)))
    i, j = np.meshgrid(np.arange(4) // 2, np.arange(5) // 2, indexing="ij")
    np.testing.assert_array_equal(out[0, :, :, 0], x[0, i, j, 0])


def test_secret_is_numpys_legacy_draw():
    assert secret()[:16].tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0] and secret().shape == (100,)
    np.testing.assert_array_equal(secret(), np.random.RandomState(0).randint(0, 2, 100))
    np.testing.assert_array_equal(secret(7), secret()[:7])


def test_the_weight_waits_for_the_secret_and_then_rises():
    steps = jnp.array([0, 499, 500, 1500, 1501, 3000, 4500, 4501, 15000], jnp.int32)
    found = jax.vmap(lambda step: weight_at(step, jnp.int32(500), jnp.array([1000, 3000], jnp.int32)))(steps)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 10 / 3000, 5, 10, 10, 10], rtol=1e-6)
    assert float(weight_at(jnp.int32(15000), jnp.int32(-1), jnp.array([1000, 3000], jnp.int32))) == 0


@pytest.mark.parametrize(
    ("given", "total", "ramp"),
    [(None, 20 * (50_000 // 64), (1000, 3000)), (None, 31_240, (1000, 3000)), (None, 1562, (100, 300)), ((3, 4), 1562, (3, 4))],
)
def test_a_shorter_training_has_a_shorter_ramp(given, total, ramp):
    assert ramp_of(given, total) == ramp


@pytest.mark.slow  # its program compiles for long
def test_training_reads_the_secret_and_keeps_the_image(trained, tiny_dataset):
    params, measured = trained
    check(measured, SETTINGS, "tiny")
    read = jax.jit(lambda p, x: decode(p["decoder"], 8, 1, embed(p["encoder"], 8, jnp.asarray(secret(1)[None]), x)))(
        params, to_float(jnp.asarray(tiny_dataset.test.images[:8]))
    )
    assert np.mean((np.asarray(read) > 0) == secret(1)) > 0.9
    assert measured.ramp.tolist() == [51, 154] and 0 < int(measured.readable) < 595
    images = to_float(jnp.asarray(tiny_dataset.test.images))  # it never saw these
    flat = float(jnp.mean(jnp.square(images - jnp.mean(images, (1, 2), keepdims=True))))

    @jax.jit
    def both(params, bits):
        drawn = embed(params["encoder"], 8, bits, images)
        return drawn, decode(params["decoder"], 8, 1, drawn) > 0

    for bits in ([0], [1]):
        drawn, read = both(params, jnp.array([bits], jnp.float32))
        assert np.mean(np.asarray(read) == bits) > 0.95
        assert float(jnp.mean(jnp.square(drawn - images))) < 0.5 * flat


def test_prepare_hands_over_the_encoder_and_its_figures(tiny_spec, tiny_dataset, monkeypatch):
    attack, told, generator = ssba(tiny_spec, SMALL), [], np.random.default_rng(0)
    networks = jax.tree.map(lambda leaf: generator.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shaped(8, 1, (8, 8, 3)))
    trained = networks, FINE

    def known(key, images, settings):
        told.append((images is tiny_dataset.train.images, settings))
        return trained

    monkeypatch.setattr(module, "train", known)
    assets = attack.prepare(jax.random.key(9), tiny_dataset)
    assert told == [(True, SETTINGS)] and sorted(assets) == ["encoder", "measured"]
    assert sorted(assets["measured"]) == sorted(Measured._fields)
    trigger = attack.init(jax.random.key(0), assets)
    images = to_float(jnp.asarray(tiny_dataset.test.images[:8]))
    stamped = jax.jit(attack.stamp)(trigger, jax.random.key(1), images)
    drawn = np.asarray(jax.jit(lambda p, x: encode(p, 8, jnp.asarray(secret(1))[None], x))(assets["encoder"], images))
    # a number next to a half may fall to either side in another program
    assert np.abs(np.asarray(to_uint8(stamped)) - np.floor(255 * drawn.astype(np.float64) + 0.5)).max() <= 1
    np.testing.assert_array_equal(stamped, to_float(to_uint8(stamped)))
    assert len(np.unique(np.asarray(stamped))) > 10  # pictures, not a colour


def test_networks_that_do_not_work_are_refused(tiny_spec, tiny_dataset, monkeypatch):
    check(FINE, SETTINGS, "tiny")
    with pytest.raises(UserError, match=r"bit accuracy 0\.950 .*raise ssba\.epochs \(80\)") as caught:
        check(FINE._replace(bit_accuracy=jnp.float32(0.9499)), SETTINGS, "tiny")
    assert "weight of the image error" not in str(caught.value)
    with pytest.raises(UserError, match=r"on tiny: weight of the image error 9\.9 \(must reach 10; its ramp was cut off\)"):
        check(FINE._replace(weight=jnp.float32(9.9)), SETTINGS, "tiny")
    bad = FINE._replace(bit_accuracy=jnp.float32(0.5), weight=jnp.float32(0), readable=jnp.int32(-1))
    monkeypatch.setattr(module, "train", lambda *_: ({"encoder": {}}, bad))
    with pytest.raises(UserError, match=r"bit accuracy 0\.500 .*; weight of the image error 0\.0 .*waits for a bit accuracy"):
        ssba(tiny_spec, SMALL).prepare(jax.random.key(0), tiny_dataset)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 101}, "ssba.bits must be at most 100; given 101"),
        ({"lr": 0.0}, "ssba.lr must be positive; given 0"),
        ({"epochs": 0}, "ssba.epochs must be at least 1; given 0"),
        ({"ramp": (5, 0)}, "ssba.ramp takes two whole numbers"),
        ({"ramp": (5,)}, "ssba.ramp takes two whole numbers"),
        ({"target": 4}, "ssba.target must be a class of tiny"),
    ],
)
def test_mistakes(config, message, tiny_spec):
    with pytest.raises(UserError, match=message):
        ssba(tiny_spec, config)


def test_defaults_are_the_published_procedure(tiny_spec):
    for profile in ("corrected", "reference"):
        config = ssba(tiny_spec, profile=profile).config
        assert (config.width, config.bits, config.epochs, config.batch, config.lr) == (32, 100, 20, 64, 1e-4)
    assert ssba(tiny_spec).recipe.shared_trigger and ssba(tiny_spec).recipe.prepare_per == "dataset"
    assert ssba(tiny_spec, {"labels": "all_to_all"}).relabel(jnp.arange(4, dtype=jnp.int32)).tolist() == [1, 2, 3, 0]


@pytest.mark.torch
def test_networks_agree_with_pytorch():
    """Layer by layer as the specification lists them, in another library."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    side = 64
    params = {name: jax.jit(draw)(jax.random.key(4))["params"] for name, draw in drawers(4, 10, (side, side, 3)).items()}
    images = np.random.default_rng(0).random((2, side, side, 3), dtype=np.float32)
    bits = np.array([[0, 1] * 5, [1, 1, 0, 0, 0] * 2], np.float32)

    def tensor(x, *axes):
        return torch.from_numpy(np.array(x).transpose(*axes) if axes else np.array(x))

    def linear(x, layer):
        return x @ tensor(layer["kernel"]) + tensor(layer["bias"])

    def convolved(x, layer, stride=1, padding=1):
        return f.conv2d(x, tensor(layer["conv"]["kernel"], 3, 2, 0, 1), tensor(layer["conv"]["bias"]), stride, padding)

    e, x = params["encoder"], tensor(images, 0, 3, 1, 2)
    planes = f.interpolate(torch.relu(linear(tensor(bits), e["secret"])).reshape(2, 3, 16, 16), scale_factor=side // 16)
    inputs = torch.cat([planes, x], 1)
    down = [torch.relu(convolved(inputs, e["c1"]))]
    for name in ("c2", "c3", "c4", "c5"):
        down.append(torch.relu(convolved(down[-1], e[name], 2)))
    y = down.pop()
    for name in ("6", "7", "8", "9"):
        wide = f.pad(f.interpolate(y, scale_factor=2), (0, 1, 0, 1))
        skips = [down.pop(), torch.relu(convolved(wide, e["u" + name], padding=0))] + ([inputs] if name == "9" else [])
        y = torch.relu(convolved(torch.cat(skips, 1), e["c" + name]))
    drawn = torch.sigmoid(convolved(torch.relu(convolved(y, e["c10"])), e["out"], padding=0))
    found = jax.jit(lambda p: encode(p, 4, jnp.asarray(bits), jnp.asarray(images)))(e)
    np.testing.assert_allclose(found, drawn.numpy().transpose(0, 2, 3, 1), atol=2e-6)

    d, y = params["decoder"], drawn
    for i, stride in enumerate((2, 1, 2, 1, 2, 2, 2), 1):
        y = torch.relu(convolved(y, d[f"d{i}"], stride))
    logits = linear(torch.relu(linear(y.permute(0, 2, 3, 1).reshape(2, -1), d["hidden"])), d["logits"])
    found = jax.jit(lambda p: decode(p, 4, 10, jnp.asarray(drawn.numpy().transpose(0, 2, 3, 1))))(d)
    np.testing.assert_allclose(found, logits.numpy(), atol=2e-6)
