"""A computation in segments ends with the same bits wherever it is cut, also where it goes on from what was kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models.cnn import cnn
from bdjax.population import Execution, adapt, members, run
from bdjax.population.segments import Pace
from bdjax.population.segments import run as run_segments
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, attack_member, attack_segments
from bdjax.types import Split
from tests.toy import patch_attack

ROWS, EPOCHS = 160, 5
STACK = members([0, 5], [0.1], ROWS)[0]
FORMS = {
    "side by side": Execution("vmap", "patches", "scan"),
    "every step repeated": Execution("unrolled", "native", "scan"),
    "one after another": Execution("sequential", "native", "scan"),
    "one on each of two devices": Execution("sequential", "native", "scan", devices=2),
    "side by side on two devices": Execution("vmap", "native", "scan", devices=2),
    "dispatched": Execution("sequential", "native", "dispatch"),
}


class InTurns(Pace):
    """Segments of given lengths."""

    def __init__(self, *lengths):
        super().__init__()
        self.lengths = list(lengths)

    def rounds(self, left):
        return min(self.lengths.pop(0), left)


def setting(dataset, execution):
    model, attack = adapt(cnn(dataset.spec, 2), execution), patch_attack()
    attack = attack._replace(recipe=attack.recipe._replace(epochs=EPOCHS))
    train, test = (Split(jnp.asarray(s.images), jnp.asarray(s.labels)) for s in (dataset.train, dataset.test))
    data = Data(train, None, EvalSet(test.images, test.labels, None, attack.relabel(test.labels)), None)
    return attack_member(model, attack, ROWS), attack_segments(model, attack, ROWS), data


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_wherever_it_is_cut(form, tiny_dataset):
    execution = FORMS[form]
    whole, parts, data = setting(tiny_dataset, execution)
    stack = STACK if execution.devices > 1 or execution.strategy != "sequential" else jax.tree.map(lambda x: x[:1], STACK)
    kept = {}

    def between(state, done):
        kept[done] = jax.device_get(jax.tree.map(words, state))

    found = run_segments(parts, stack, (data,), execution, pace=InTurns(1, 3, 9), between=between)
    assert list(kept) == [1, 4]
    near(found, run(whole, stack, (data,), execution))  # another program: the compiler may round otherwise
    for done, state in kept.items():  # as after a process was killed there
        state = jax.tree.map(jnp.asarray, state)
        like = jax.eval_shape(jax.vmap(lambda m: parts.begin(m, data)), stack)
        state = jax.tree.map(of_words, like, state)
        again = run_segments(parts, stack, (data,), execution, pace=InTurns(9), between=between, state=state, done=done)
        same(again, found)


def near(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), jax.device_get(one), jax.device_get(other))


def words(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def of_words(like, leaf):
    return jax.random.wrap_key_data(leaf) if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else leaf


def test_a_segment_grows_to_its_seconds_from_one_round():
    pace = Pace(60)
    assert pace.rounds(100) == 1
    pace.took(1, 20)
    assert pace.rounds(100) == 3 and pace.rounds(2) == 2
    pace.took(3, 30)
    assert pace.rounds(100) == 6
    pace.took(6, 600)
    assert pace.rounds(100) == 1
