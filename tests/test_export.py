"""Every program of the package exports for CPU, CUDA and TPU alike: nothing in training, evaluation or a repair knows a platform.

Exporting for a platform needs no device of it. It fails where an operation has no rule for one of the three; what it would let
pass is a kernel of one platform behind a switch, so the modules are also searched for custom calls.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.models.cnn import cnn
from bdjax.nn.convolution import LOWERINGS
from bdjax.population import members
from bdjax.train import trainer
from bdjax.train.evaluate import evaluator
from bdjax.train.experiment import Subject, attack_member, defend_member, stage
from bdjax.types import PROFILES, Split
from tests.networks import PUBLISHED, spec
from tests.programs import PLATFORMS, abstract, check_export, custom_calls, exported
from tests.short import TINY, offered, shortened
from tests.toy import patch_attack

ROWS, SPC = 16, 2

STEPS = [*(("cnn", lowering) for lowering in LOWERINGS), ("preactresnet18", "unrolled")]


def each(first):
    """The small network in every lowering, and the others in one; those that are not in ``first`` come with the slow tests."""
    pairs = [*(("cnn", lowering) for lowering in LOWERINGS), *((name, "unrolled") for name in PUBLISHED)]
    return [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in first)) for pair in pairs]


def batched(function, *axes):
    return jax.vmap(function, axes)


@pytest.fixture(scope="module")
def small(tiny_dataset):
    """Sixteen rows to train on and eight to test on."""
    train, test = (Split(s.images[:n], s.labels[:n]) for s, n in ((tiny_dataset.train, ROWS), (tiny_dataset.test, 8)))
    return tiny_dataset._replace(train=train, test=test)


@pytest.fixture(scope="module")
def toy(small):
    """A small attack and the data of its members."""
    attack = patch_attack(epochs=1, batch=8)
    return attack, stage(attack, small, jax.random.key(0))


@pytest.fixture(scope="module")
def stacked():
    return members([0, 1], [0.1], ROWS, spc=SPC)[0]


def one(stack):
    return jax.tree.map(lambda x: x[0], stack)


@pytest.mark.parametrize(("platform", "kernel"), [("cpu", "lapack"), ("cuda", "cusolver"), ("tpu", "Qr")])
def test_the_search_finds_kernels_of_one_platform(platform, kernel):
    program = jax.export.export(jax.jit(lambda x: jnp.linalg.qr(x)[1]), platforms=[platform])(jnp.ones((3, 3)))
    assert any(kernel in name for name in custom_calls(program))
    with pytest.raises(AssertionError):
        check_export(program)


def test_a_program_that_calls_the_host_cannot_be_exported():
    with pytest.raises(NotImplementedError, match="callback"):
        exported(lambda x: jax.pure_callback(lambda y: y, x, x), jnp.ones(3))


def network(name, lowering, width=2, classes=4):
    """A shallow network of the table, with what it draws at random in train mode."""
    fields = {"depth": 1} if name in PUBLISHED else {}
    return MODELS[name](spec(classes), width, lowering=lowering, **fields)


def at_32_pixels(tree):
    """Its images as abstract ones of 32 pixels, which every network takes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], 32, 32, 3), x.dtype) if x.ndim == 4 else x, tree)


@pytest.mark.parametrize(("name", "lowering"), each(first=[]))
def test_training_and_evaluation_of_one_member(name, lowering, toy, stacked):
    attack, data = toy
    check_export(exported(attack_member(network(name, lowering), attack, ROWS), one(stacked), at_32_pixels(data)))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_training_and_evaluation_of_a_population(lowering, small, toy, stacked):
    attack, data = toy
    run = attack_member(MODELS["cnn"](small.spec, 2, lowering=lowering), attack, ROWS)
    check_export(exported(batched(run, 0, None), stacked, data))


@pytest.mark.parametrize(("name", "lowering"), each(first=STEPS))
def test_a_single_training_step_of_a_population(name, lowering, toy, stacked, monkeypatch):
    """The step that a dispatched loop compiles, with the arguments it is given there: images and channels of a real size."""
    attack, data = toy
    seen = []

    def spy(body, carry, xs, shared, loop):
        seen.append((body, (shared, carry, jax.tree.map(lambda x: x[0], xs))))
        return carry

    monkeypatch.setattr(trainer, "steps", spy)
    train = trainer.trainer(network(name, lowering, 16), attack, ROWS)
    images = jax.ShapeDtypeStruct((ROWS, 32, 32, 3), jnp.uint8)
    jax.eval_shape(train, *abstract((one(stacked), data.train._replace(images=images), images, data.assets)))
    step, arguments = seen[0]

    def widened(x):
        return jax.ShapeDtypeStruct((2, *x.shape), x.dtype)

    check_export(exported(batched(step, 0, 0, 0), *jax.tree.map(widened, arguments)))


@pytest.mark.parametrize(("name", "lowering"), each(first=[("cnn", "unrolled")]))
def test_evaluation(name, lowering, toy, stacked):
    model, (_, data) = network(name, lowering), toy
    variables = jax.eval_shape(jax.vmap(model.init), stacked.key)
    check_export(exported(batched(evaluator(model), 0, None), variables, at_32_pixels(data.test)))


def first_of_each_need():
    """A defense for every set of things that a defender is given."""
    found = {}
    for name, make in DEFENSES.items():
        for profile in PROFILES:
            if offered(name, profile):
                found.setdefault(shortened(make, cnn(TINY, 2), profile).needs, (name, profile))
    return [*found.values()]


# The repairs themselves are exported by tests/contract; here what surrounds them: the clean rows, what is given, the evaluation.
FORMS = [
    *(pytest.param(n, "cnn", "patches", p, marks=[pytest.mark.slow] * bool(i)) for i, (n, p) in enumerate(first_of_each_need())),
    # On the residual network one of each kind: tuned, through second derivatives, pruned, with a plug.
    *(pytest.param(n, "preactresnet18", "unrolled", "corrected", marks=pytest.mark.slow) for n in ("ft", "i_bau", "anp", "npd")),
]


@pytest.mark.parametrize(("name", "model_name", "lowering", "profile"), FORMS)
def test_defenses(name, model_name, lowering, profile, small, toy, stacked):
    """A defense repairs and is measured, as a population."""
    model, (attack, data) = MODELS[model_name](small.spec, 2, lowering=lowering), toy
    defense = shortened(DEFENSES[name], model, profile, epochs=1)
    hyper = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2,), np.asarray(x).dtype), defense.hyper)
    variables, trigger = jax.eval_shape(jax.vmap(lambda k: (model.init(k), attack.init(k, None))), stacked.key)
    subjects = Subject(abstract(stacked)._replace(hyper=hyper), variables, trigger)
    check_export(exported(batched(defend_member(model, attack, defense, SPC, keep=True), 0, None), subjects, data))


def test_training_in_bfloat16(small, toy, stacked):
    attack, data = toy
    run = attack_member(MODELS["cnn"](small.spec, 2, lowering="patches", dtype=jnp.bfloat16), attack, ROWS)
    check_export(exported(batched(run, 0, None), stacked, data))


def test_an_exported_program_gives_the_same_results(small, toy, stacked):
    """Written, read back and called here, against the function itself."""
    attack, data = toy
    run = attack_member(MODELS["cnn"](small.spec, 2, lowering="patches"), attack, ROWS)
    leaves, form = jax.tree.flatten((one(stacked), data))

    def flat(*leaves):  # a program on disk knows none of the package's tuples
        return jax.tree.leaves(run(*jax.tree.unflatten(form, leaves)))

    program = exported(flat, *leaves)
    check_export(program)
    read = jax.export.deserialize(program.serialize())
    assert read.platforms == PLATFORMS
    want = jax.jit(flat)(*leaves)
    chex.assert_trees_all_close(read.call(*leaves), want, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(np.asarray(x)).all() for x in want)
