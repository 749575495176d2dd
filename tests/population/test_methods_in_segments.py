"""Every defense, and what attacks prepare, may be cut between its rounds: killed and continued it ends with the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.models.cnn import cnn
from bdjax.population import Execution, adapt, members, run
from bdjax.population.segments import run as run_segments
from bdjax.train import loops
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, Subject, defend_member, preparation
from bdjax.types import Split
from tests.later import some_later
from tests.population.test_segments import InTurns, Kept, near, same
from tests.short import shortened
from tests.toy import patch_attack

LONG = {"anp", "nc", "ims", "bti_dbf", "sau", "nad"}  # those that run for hours on the papers' networks
STAGES = {"anp": 1, "bti_dbf": 2, "ims": 2, "nad": 2, "nc": 2, "sau": 1}
SIDE_BY_SIDE = Execution("vmap", "patches", "scan")


@pytest.mark.parametrize("name", some_later(list(DEFENSES), set(DEFENSES) - LONG))
def test_a_defense_ends_with_the_same_bits_wherever_it_is_killed(name, tiny_dataset, monkeypatch):
    monkeypatch.setattr(loops, "BLOCK", 1)
    model = adapt(cnn(tiny_dataset.spec, 4), SIDE_BY_SIDE)
    attack = patch_attack()
    defense = shortened(DEFENSES[name], model)
    train, test = (Split(jnp.asarray(s.images), jnp.asarray(s.labels)) for s in (tiny_dataset.train, tiny_dataset.test))
    data = Data(train, None, EvalSet(test.images, test.labels, None, attack.relabel(test.labels)), None)
    stack = members([0, 5], [0.1], len(train.labels), spc=4, hyper=jax.tree.map(jnp.asarray, defense.hyper))[0]
    variables = jax.vmap(model.init)(stack.key)
    subjects = Subject(stack, variables, jax.vmap(lambda key: attack.init(key, None))(stack.key))
    killed_and_continued(defend_member(model, attack, defense, 4), subjects, (data,), STAGES.get(name))


@pytest.mark.slow
def test_the_masks_of_input_aware_are_trained_in_segments(tiny_dataset):
    attack = ATTACKS["input_aware"](tiny_dataset.spec, {"width": 4, "mask_epochs": 3, "mask_batch": 32})
    train, test = (Split(jnp.asarray(s.images), jnp.asarray(s.labels)) for s in (tiny_dataset.train, tiny_dataset.test))
    data = Data(train, None, EvalSet(test.images, test.labels, None, test.labels), None)
    keys = members([0, 5], [0.1], len(train.labels))[0].key
    prepare = preparation(attack, tiny_dataset)
    found = killed_and_continued(prepare, keys, (data,), 1, close=False)  # Adam makes much of what is rounded otherwise
    whole = run(prepare, keys, (data,), SIDE_BY_SIDE)
    np.testing.assert_allclose(found["loss"][:, 0], whole["loss"][:, 0], rtol=0.02)


def killed_and_continued(function, stacked, shared, stages, close=True):
    undisturbed = Kept()
    found = run_segments(function, stacked, shared, SIDE_BY_SIDE, keeper=undisturbed, pace=InTurns(1))
    if close:
        near(found, run(function, stacked, shared, SIDE_BY_SIDE))  # another program: the compiler may round otherwise
    if stages is not None:
        assert max(position[2] for position in undisturbed.seen) < stages
    if not undisturbed.seen:
        return found
    killed = Kept(killed_after=len(undisturbed.seen))
    with pytest.raises(KeyboardInterrupt):
        run_segments(function, stacked, shared, SIDE_BY_SIDE, keeper=killed, pace=InTurns(1))
    same(found, run_segments(function, stacked, shared, SIDE_BY_SIDE, pace=InTurns(2), kept=killed.last))
    return found
