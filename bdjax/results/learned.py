"""Triggers that are learned while a network is trained: out of a folder of results, or trained here."""

import dataclasses
import json
from typing import Any, NamedTuple

from bdjax import population
from bdjax.attacks.table import ATTACKS
from bdjax.configure import recorded
from bdjax.errors import UserError
from bdjax.keys import Stream, stream
from bdjax.population import Execution
from bdjax.results import member
from bdjax.results.as_recorded import method
from bdjax.results.triggers import Say, Trigger, learned, one_prepared, staged, unlearned
from bdjax.store.hashing import plain
from bdjax.sweep.build import attacked
from bdjax.train.experiment import attack_member
from bdjax.types import Array, Attack, Dataset


@dataclasses.dataclass(frozen=True)
class Learning:
    """Where the trigger of an attack comes from that learns it while the network is trained (input_aware)."""

    results: str | None = None
    """Folder of a run that trained such a network; default: one is trained now."""
    model: str | None = None
    """Network; some triggers depend on it that are not learned; default: cnn, or that of the results."""
    width: int | None = None
    """Channels of the network's first stage; default: the network's own."""
    poison_ratio: float | None = None
    """Share of the training rows that the network was poisoned with; default: 0.1, or that of the results."""
    epochs: int | None = None
    """Epochs of the training; default: the attack's recipe."""
    batch: int | None = None
    """Batch size of the training; default: the attack's recipe."""


class Named(NamedTuple):
    """An attack to be shown, and the training cell that it stands in."""

    name: str
    cell: Any  # bdjax.sweep.cell.TrainCell
    attack: Attack


class Ready(NamedTuple):
    """An attack with its trigger."""

    attack: Attack
    trigger: Trigger
    note: str  # whose trigger it is, where members have their own


def ready(
    one: Named, dataset: Dataset, learning: Learning, seed: int, ratio: float, execution: Execution | None, say: Say
) -> Ready:
    """The trigger of an attack, learned or not.

    Args:
      one: the attack.
      dataset: images it is prepared from, and its network trained on.
      learning: of a trigger that is learned.
      seed: of the member whose trigger it is.
      ratio: that a network trained here is poisoned with.
      execution: how it is trained; None = the default of the platform.
      say: is called with a line about what is trained.

    Raises:
      UserError: no network in the folder of results fits, or the training went out of bounds.
    """
    note = "" if one.attack.recipe.shared_trigger else f"seed {seed}"
    if one.attack.update is None:
        return Ready(one.attack, unlearned(one.attack, dataset, seed, one.cell.root, say), note)
    if learning.results is None:
        say(
            f"{one.name} learns its trigger while a network is trained: {one.cell.model}, {one.attack.recipe.epochs} epochs of "
            f"{len(dataset.train.labels)} images; --results DIR takes that of a run, --epochs and --train-images shorten it"
        )
        return Ready(one.attack, _trained_here(one, dataset, seed, ratio, execution, say), f"{one.cell.model}, {note}")
    return _from_results(one, dataset, learning, seed)


def _trained_here(one: Named, dataset: Dataset, seed: int, ratio: float, execution: Execution | None, say: Say) -> Trigger:
    model, attack = attacked(one.cell)
    how = execution or population.resolve({"chunk": 0, "devices": 1}, model)
    data = staged(attack, dataset, one.cell.root)
    stacked = one_prepared(attack, dataset, data, seed, ratio, one.cell.root, say)
    function = attack_member(population.adapt(model, how), attack, len(dataset.train.labels))
    done, counts = population.run(function, stacked, (data,), how)
    if not done.alive[0]:
        raise UserError(f"the training that {one.name} learns its trigger in is not finite from step {int(done.stopped[0])} on")

    def rate(hits: Array, of: Array) -> str:
        return f"{int(hits[0]) / max(int(of[0]), 1):.3f}"

    say(f"{one.name}: ACC {rate(counts.correct, counts.clean)}, ASR {rate(counts.attacked, counts.triggered)}")
    return Trigger(population.take(done.trigger, 0), stream(population.take(stacked.key, 0), Stream.TRIGGER))


def _from_results(one: Named, dataset: Dataset, learning: Learning, seed: int) -> Ready:
    cell = one.cell
    wanted = {"dataset": dataset.spec.name, "attack": one.name, "seed": seed, "profile": cell.profile}
    more = {"model": learning.model, "ratio": learning.poison_ratio, "width": learning.width, "train_images": cell.train_images}
    found = member.find(str(learning.results), {**wanted, **more})
    config = json.loads(found.row["config"])
    method("attack", config["attack"], ATTACKS)  # its file is still the one it was trained with
    network = config["model"]
    _, attack = attacked(cell._replace(model=network["name"], width=network["width"], depth=network.get("depth"), recipe={}))
    asked, trained_with = plain(recorded(attack.config)), config["attack"]["config"]
    differ = [field for field in sorted({*asked, *trained_with}) if asked.get(field) != trained_with.get(field)]
    if differ:
        values = ", ".join(f"{field} {trained_with.get(field)}" for field in differ)
        raise UserError(f"the network of {learning.results} was trained with {one.name} of {values}: ask for that")
    return Ready(attack, learned(found, attack, dataset), f"{network['name']}, seed {seed}")
