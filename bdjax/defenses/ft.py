"""FT: plain fine-tuning."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bdjax.configure import at_least, configure
from bdjax.defenses.batches import training_rows
from bdjax.defenses.tuning import Hyper, tuner
from bdjax.train.schedules import cosine_by_epoch
from bdjax.types import Array, Defended, DefenderView, Defense, Key, Model


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 100
    batch: int = 256
    period: int | None = None  # epochs from the first learning rate down to 0


class FTTrace(NamedTuple):
    """What happened while tuning."""

    loss: Array  # f32[epochs]: mean cross-entropy of the epoch
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {"corrected": Config(), "reference": Config(period=100)}


def ft(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Continue the training of the whole network on the clean rows.

    Mean cross-entropy, SGD on all parameters, learning rate lr (1 + cos(pi e / T)) / 2 in epoch e, batch-norm in train mode with
    one update of its statistics per step; the network after the last epoch is the result.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`~bdjax.defenses.tuning.Hyper` and trace :class:`FTTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: K. Liu, B. Dolan-Gavitt, S. Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID
      2018, where it is the baseline; settings of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: in the model's precision, float32 unless it was built otherwise, and without the loss scaling of the survey's
      published code, which skips the first steps. The profiles differ in runs of other than 100 epochs only: T = epochs in
      "corrected", 100 in "reference", where the rate rises again after 100 epochs.
    """
    config = configure(PRESETS, config, "ft", profile)
    period = config.epochs if config.period is None else config.period
    config = config._replace(period=period)
    at_least("ft", config, epochs=1, batch=1, period=1)
    tune = tuner(model, epochs=config.epochs, batch=config.batch, schedule=cosine_by_epoch(period))

    def defend(key: Key, view: DefenderView, hyper: Hyper) -> Defended:
        assert view.clean is not None
        tuned = tune(key, view.variables, view.clean, training_rows(view.clean), hyper)
        return Defended(tuned.variables, None, FTTrace(tuned.loss, tuned.alive, tuned.stopped))

    return Defense(defend, Hyper(), frozenset({"clean"}), config)
