"""A computation in segments ends with the same bits wherever it is cut, also where it goes on from what was kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models.cnn import cnn
from bdjax.population import Execution, adapt, members, run
from bdjax.population.segments import Abandoned, Pace
from bdjax.population.segments import run as run_segments
from bdjax.population.snapshots import Misfit
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, attack_member
from bdjax.types import Split
from tests.toy import patch_attack

ROWS, EPOCHS = 160, 5
STACK = members([0, 5, 9], [0.1], ROWS)[0]
FORMS = {
    "side by side": Execution("vmap", "patches", "scan"),
    "in chunks": Execution("map", "native", "scan", chunk=2),
    "every step repeated": Execution("unrolled", "native", "scan", chunk=2),
    "one after another": Execution("sequential", "native", "scan"),
    "one on each of two devices": Execution("sequential", "native", "scan", devices=2),
    "side by side on two devices": Execution("vmap", "native", "scan", devices=2),
    "dispatched": Execution("sequential", "native", "dispatch"),
}


class InTurns(Pace):
    """Segments of these lengths, again and again, each of which is kept."""

    due = True

    def __init__(self, *lengths):
        super().__init__()
        self.lengths = list(lengths)

    def rounds(self, left):
        self.lengths.append(self.lengths.pop(0))
        return min(self.lengths[-1], left)


class Kept:
    """A keeper in memory; a run that is to be "killed" ends after so many snapshots."""

    def __init__(self, killed_after=0):
        self.killed_after, self.last, self.seen = killed_after, None, []

    def keep(self, snapshot):
        self.last = snapshot
        self.seen.append(snapshot[:4])
        if len(self.seen) == self.killed_after:
            raise KeyboardInterrupt


def setting(dataset, execution):
    model, attack = adapt(cnn(dataset.spec, 2), execution), patch_attack()
    attack = attack._replace(recipe=attack.recipe._replace(epochs=EPOCHS))
    train, test = (Split(jnp.asarray(s.images), jnp.asarray(s.labels)) for s in (dataset.train, dataset.test))
    data = Data(train, None, EvalSet(test.images, test.labels, None, attack.relabel(test.labels)), None)
    return attack_member(model, attack, ROWS), data


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def near(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), jax.device_get(one), jax.device_get(other))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_wherever_it_is_cut_and_killed(form, tiny_dataset):
    execution = FORMS[form]
    train, data = setting(tiny_dataset, execution)
    undisturbed = Kept()
    found = run_segments(train, STACK, (data,), execution, keeper=undisturbed, pace=InTurns(1, 3))
    near(found, run(train, STACK, (data,), execution))  # another program: the compiler may round otherwise
    same(found, run_segments(train, STACK, (data,), execution, pace=InTurns(99)))
    for after in (1, len(undisturbed.seen)):
        killed = Kept(killed_after=after)
        with pytest.raises(KeyboardInterrupt):
            run_segments(train, STACK, (data,), execution, keeper=killed, pace=InTurns(1, 3))
        again = Kept()
        same(found, run_segments(train, STACK, (data,), execution, keeper=again, pace=InTurns(2), kept=killed.last))
        assert len(again.seen) < len(undisturbed.seen)


def test_a_computation_that_is_abandoned_ends_after_its_segment_and_keeps_nothing_more(tiny_dataset):
    execution = FORMS["dispatched"]
    train, data = setting(tiny_dataset, execution)
    keeper, answers = Kept(), iter((False, True))
    with pytest.raises(Abandoned):
        run_segments(train, STACK, (data,), execution, keeper=keeper, pace=InTurns(1), abandoned=lambda: next(answers))
    assert [rounds for *_, rounds in keeper.seen] == [1]


def test_a_snapshot_of_something_else_is_refused(tiny_dataset):
    execution = FORMS["side by side"]
    train, data = setting(tiny_dataset, execution)
    killed = Kept(killed_after=1)
    with pytest.raises(KeyboardInterrupt):
        run_segments(train, STACK, (data,), execution, keeper=killed, pace=InTurns(1, 3))
    state = killed.last.state
    for other in (state[:-1], (state[0][..., None], *state[1:]), (state[0].astype(np.float64), *state[1:])):
        with pytest.raises(Misfit):
            run_segments(train, STACK, (data,), execution, kept=killed.last._replace(state=other))


def test_a_segment_grows_to_its_seconds_from_one_round_and_with_the_cost_of_keeping():
    pace = Pace()
    assert pace.rounds(100) == 1 and not pace.due
    pace.took(1, 0.5)
    assert pace.rounds(100) == 9 and pace.rounds(2) == 2 and not pace.due
    pace.took(9, 4.5)
    assert pace.due
    pace.kept(0.2)  # a hundredth of 20 seconds
    assert pace.rounds(100) == 40 and not pace.due
    pace.kept(100)
    assert pace.rounds(1000) == 120
    pace.took(6, 600)
    assert pace.rounds(100) == 1 and pace.due


def test_a_given_time_between_two_snapshots_stays():
    pace = Pace(2.0)
    pace.took(10, 1.0)
    pace.kept(1.0)
    assert pace.rounds(100) == 20
