import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.npd import NPDHyper, first_plug, npd, targeted, with_plug
from bdjax.defenses.tuning import Batch
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.models.cnn import cnn
from bdjax.types import DefenderView
from tests.defenses.plain_eval import knowing, log_softmax
from tests.defenses.plain_inserts import inserted, widened
from tests.defenses.plain_network import batches, cross_entropies, descend, pixels, plain
from tests.later import some_later
from tests.networks import PUBLISHED, SLOWEST, shapes, spec

KEY = jax.random.key(3)
SHORT = {"warmup_epochs": 2, "epochs": 2, "batch": 8, "inner_steps": 3}
HYPER = NPDHyper(
    bound=0.9, lambda_purify=0.7, lambda_second=0.5, lambda_target=0.6, lambda_clean=1.3, lr=0.05, momentum=0.8,
    weight_decay=1e-2, warmup_lr=0.03, step=0.1, enough=0.6,
)  # fmt: skip


@functools.cache
def built(model, **config):
    defense = npd(model, {**SHORT, **config})
    return lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper)


@functools.cache
def compiled(model, **config):
    return jax.jit(built(model, **config))


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    return knowing(plain_spec, variables, clean(5))


def within(x):
    """Pixels cut to [0, 1]; as in PyTorch, the whole slope goes through at 0 and 1 themselves."""
    return jnp.where((x >= 0) & (x <= 1), x, jnp.where(x > 1, 1.0, 0.0))


@functools.cache
def functions(plain_spec, plug_train):
    """Logits in eval mode, and the slopes of the warm-up, of the perturbation and of the plug."""

    def logits(variables, plug, stats, x):
        return inserted(plain_spec, variables, x, plug=plug, plug_stats=stats)[0]

    def warm(plug, variables, x, y):
        z, _, measured = inserted(plain_spec, variables, x, plug=plug)
        return cross_entropies(z, y).mean(), measured

    def aim(delta, variables, plug, stats, x, target):
        return jnp.minimum(cross_entropies(logits(variables, plug, stats, within(x + delta)), target), 80.0).mean()

    def polish(plug, variables, stats, x, there, y, seen, target, weights):
        mode = None if plug_train else stats
        z, _, measured = inserted(plain_spec, variables, x, plug=plug, plug_stats=mode)
        p = log_softmax(logits(variables, plug, mode, there))
        chances, each = jnp.exp(p), jnp.arange(len(y))
        wrong = jnp.where(jax.nn.one_hot(y, 4, dtype=bool), -1.0, chances).argmax(1)
        kept_down = [-jnp.log(1.0001 - chances[each, c] + 1e-12).mean() for c in (wrong, target)]
        parts = cross_entropies(z, y).mean(), -p[each, seen].mean(), *kept_down
        return sum(w * part for w, part in zip(weights, parts, strict=True)), (measured, parts, p.argmax(1))

    slopes = (jax.value_and_grad(warm, has_aux=True), jax.grad(aim), jax.value_and_grad(polish, has_aux=True))
    return tuple(jax.jit(f) for f in (logits, *slopes))


IDENTITY = {"kernel": np.eye(16)[None, None], "scale": np.ones(16), "bias": np.zeros(16)}


def polarised(plain_spec, variables, rows, hyper, *, signed, plug_train):
    """The plug, its statistics, what was recorded per epoch, and at which inner step each batch's search ended."""
    logits, warm, aim, polish = functions(plain_spec, plug_train)
    images, labels = np.asarray(pixels(rows)), np.asarray(rows.labels, np.int64)
    bound, step, enough = (float(x) for x in (hyper.bound, hyper.step, hyper.enough))
    weights = [float(w) for w in (hyper.lambda_clean, hyper.lambda_purify, hyper.lambda_second, hyper.lambda_target)]
    plug, stats = IDENTITY, {"mean": np.zeros(16), "var": np.ones(16)}

    def followed(stats, measured):
        return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, measured)

    warming, polarising = jax.random.split(KEY)
    first, recorded, ended, norms = [], [], [], []
    for plan in batches(warming, len(labels), 8, 2):
        losses = []
        for chosen in plan:
            (value, measured), slope = plain(warm(plug, variables, images[chosen], labels[chosen]))
            plug = jax.tree.map(lambda p, g: p - float(hyper.warmup_lr) * g, plug, slope)
            stats = followed(stats, measured)
            losses.append(float(value))
        first.append(np.mean(losses))
    buffer = jax.tree.map(np.zeros_like, plug)
    for plan in batches(polarising, len(labels), 8, 2):
        seen_now = []
        for chosen in plan:
            x, y = images[chosen], labels[chosen]
            z = np.array(logits(variables, plug, stats, x))
            seen = z.argmax(1)
            z[np.arange(len(y)), y] = -10
            target, delta = z.argmax(1), np.zeros(x.shape)
            trip = 0
            while trip < 3:
                slope = np.array(aim(delta, variables, plug, stats, x, target))
                delta = delta - step * (np.sign(slope) if signed else slope)
                size = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
                norms.append(size.max())
                delta = np.where(size > bound, delta * bound / np.where(size > bound, size, 1), delta)
                hit = np.mean(np.array(logits(variables, plug, stats, np.clip(x + delta, 0, 1))).argmax(1) == target)
                trip += 1
                if hit > enough:
                    break
            ended.append(trip)
            there = np.clip(x + delta, 0, 1)
            (value, (measured, parts, called)), slope = plain(polish(plug, variables, stats, x, there, y, seen, target, weights))
            plug, buffer = descend(plug, buffer, slope, float(hyper.lr), float(hyper.momentum), float(hyper.weight_decay))
            stats = followed(stats, measured) if plug_train else stats
            seen_now.append([float(value), float(parts[0]), float(parts[1]), np.mean(called == target)])
        recorded.append(np.mean(seen_now, 0))
    return plug, stats, first, np.array(recorded).T, ended, max(norms)


# Along the sign with the plug in eval mode, as on most data sets; along the slope itself, with the plug in train mode, as the
# reference on Tiny-ImageNet. Slopes of a mean are small: a large step.
CASES = {"signed": (True, False, HYPER), "plain": (False, True, HYPER._replace(step=20.0))}
PARAMETERS = [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name == "plain")) for name, case in CASES.items()]


@pytest.mark.parametrize(("signed", "plug_train", "hyper"), PARAMETERS)
def test_the_plug_is_the_one_written_out_by_hand(
    model, known, clean, padded, wide, distance, plain_spec, signed, plug_train, hyper
):
    """Batches of 8, 8 and 4 rows, absent ones of garbage between, behind which empty batches follow."""
    rows, before, hyper = clean(5), wide(known), widened(hyper)
    found = compiled(model, signed=signed, plug_train=plug_train)(before, padded(rows, 13), hyper)
    plug, stats, first, recorded, ended, size = polarised(plain_spec, before, rows, hyper, signed=signed, plug_train=plug_train)
    assert distance(found.variables["plug"], plug) < 1e-9 and distance(found.variables["plug_stats"], stats) < 1e-9
    trace = found.trace
    np.testing.assert_allclose(np.asarray(trace.warmup), first, rtol=2e-6)
    for values, expected in zip((trace.loss, trace.clean, trace.purified, trace.fooled), recorded, strict=True):
        np.testing.assert_allclose(np.asarray(values), expected, rtol=2e-6)
    assert bool(trace.alive) and int(trace.stopped) == -1
    for name in ("params", "batch_stats"):
        assert distance(found.variables[name], before[name]) == 0, "the network itself stays"
    assert min(ended) < max(ended), "searches must end at different steps"
    assert size > float(hyper.bound), "the bound must bind"
    assert distance(plug, IDENTITY) > 1e-2


@pytest.mark.parametrize(("signed", "plug_train", "hyper"), PARAMETERS)
def test_every_hyper_parameter_changes_the_plug(model, known, clean, padded, wide, distance, signed, plug_train, hyper):
    run, before, rows = compiled(model, signed=signed, plug_train=plug_train), wide(known), padded(clean(5), 13)
    found = run(before, rows, widened(hyper)).variables["plug"]
    for name in NPDHyper._fields:
        changed = run(before, rows, widened(hyper._replace(**{name: getattr(hyper, name) * 0.5}))).variables["plug"]
        assert distance(found, changed) > 1e-6, name


def test_without_rows_the_plug_stays_the_identity(model, known, clean, padded, wide, distance):
    before, rows = wide(known), padded(clean(5), 13)
    run = compiled(model, signed=True, plug_train=False)
    found = run(before, rows._replace(role=np.zeros_like(rows.role)), widened(HYPER))
    first = first_plug(model, before)
    assert distance(found.variables, with_plug(before, first)) == 0 and bool(found.trace.alive)
    # The first statistics are 0 and 1: with 1 - ε for the variance nothing changes at all.
    exact = with_plug(before, {**first, "batch_stats": {"mean": np.zeros(16), "var": np.full(16, 1 - 1e-5)}})
    images = pixels(clean(5))
    logits = jax.jit(lambda variables: model.apply(variables, images).logits)
    assert distance(first["params"], IDENTITY) == 0
    assert distance(logits(exact), logits(before)) < 1e-12
    assert 0 < distance(logits(found.variables), logits(before)) < 1e-3


def test_perturbations_stay_within_the_bound_and_hit_their_targets(model, known, clean):
    rows = clean(5)
    batch = Batch(np.asarray(rows.images) / np.float32(255), rows.labels, np.ones(20, np.float32))
    variables = with_plug(known, first_plug(model, known))
    z = jax.jit(lambda x: model.apply(variables, x).logits)(batch.images)
    target = np.argsort(z, 1)[:, -2].astype(np.int32)  # the second choice
    defense = npd(model, {"inner_steps": 8})

    @jax.jit
    def search(bound):
        hyper = jax.tree.map(jnp.asarray, defense.hyper._replace(bound=bound, enough=np.float32(1)))
        delta = targeted(model, variables, batch, target, hyper, defense.config)
        calls = jnp.argmax(model.apply(variables, jnp.clip(batch.images + delta, 0, 1)).logits, -1)
        return jnp.sqrt(jnp.sum(jnp.square(delta), (1, 2, 3))), jnp.mean(calls == target)

    hits = []
    for bound in (0.2, 1.5):
        size, hit = map(np.asarray, search(np.float32(bound)))
        assert np.max(size) <= bound * (1 + 1e-5) and np.mean(size > 0.999 * bound) > 0.5  # one step alone is 1.4 long
        hits.append(float(hit))
    assert hits[0] == 0 and hits[1] > 0.3  # the search takes steps of that length


SIZES = {"preactresnet18": 263_168, "vgg19_bn": 263_168, "efficientnet_b3": 148_224, "mobilenet_v3_large": 25_920}


@pytest.mark.parametrize("name", some_later(PUBLISHED, SLOWEST))
def test_the_plugs_of_published_networks_have_so_many_values(name):
    model = MODELS[name](spec())
    plug = jax.eval_shape(functools.partial(first_plug, model), shapes(model))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(plug["params"])) == SIZES[name]


def test_a_member_that_is_not_finite_is_frozen_and_marked(model, known, clean, padded, wide, distance):
    """One fails in the warm-up, the other after it."""
    run, rows = compiled(model, signed=True, plug_train=False), padded(clean(5), 13)
    for broken in ({"warmup_lr": 1e308}, {"lr": 1e308}):
        found = plain(run(wide(known), rows, widened(HYPER._replace(**broken))))
        assert not bool(found.trace.alive) and 0 < int(found.trace.stopped) < 6
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.variables))


@pytest.mark.slow  # another program
def test_a_member_that_is_not_finite_is_frozen_and_marked_while_others_go_on(model, known, clean, distance):
    """The second fails in the warm-up, after which it stays as it is; the third after it."""
    rows, huge = clean(5), 1e38
    base = npd(model).hyper._replace(lr=np.float32(0.05))

    def one(lr, warmup_lr):
        return built(model)(known, rows, jax.tree.map(jnp.asarray, base._replace(lr=lr, warmup_lr=warmup_lr)))

    together = jax.jit(jax.vmap(one))

    def run(*rates):
        return plain(together(*map(np.float32, rates)))

    warmup = [1e-3, huge, 1e-3]
    found, well = run([0.05, 0.05, huge], warmup), run([0.05] * 3, [1e-3] * 3)
    assert found.trace.alive.tolist() == [True, False, False] and found.trace.stopped[0] == -1
    assert 0 < found.trace.stopped[1] < 6 and 0 < found.trace.stopped[2] < 6
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    assert distance(*(jax.tree.map(lambda x: x[0], f.variables) for f in (found, well))) == 0
    again = run([0.05, 0.01, huge], warmup)
    assert distance(*(jax.tree.map(lambda x: x[1], f.variables) for f in (found, again))) == 0, "the rest must not touch it"


def test_profiles_and_defaults(model, plain_spec):
    defense = npd(model)
    assert defense.config == (5, 50, 128, 2, True, False) == npd(model, profile="reference").config
    assert defense.needs == {"clean"} and not defense.validation
    np.testing.assert_allclose(defense.hyper, [3, 0.4, 0.4, 0.4, 1, 0.01, 0.9, 5e-4, 1e-4, 0.1, 0.6], rtol=1e-6)
    signs = cnn(plain_spec._replace(name="gtsrb"), 4)
    np.testing.assert_allclose(npd(signs).hyper[:4], [5, 0.5, 0.5, 0.5])
    tiny = cnn(plain_spec._replace(name="tiny_imagenet"), 4)
    np.testing.assert_allclose(npd(tiny).hyper[:4], [3, 0.4, 0.4, 0.4], rtol=1e-6)
    assert [npd(tiny, profile=p).config[4:] for p in ("corrected", "reference")] == [(True, True), (False, True)]


def test_mistakes_are_named(model):
    for field, least in (("warmup_epochs", 1), ("epochs", 1), ("batch", 1), ("inner_steps", 0)):
        with pytest.raises(UserError, match=rf"npd\.{field} must be at least {least}; given {least - 1}"):
            npd(model, {field: least - 1})
