"""Grad-Prune's variants as defenses of their own: triggers made without knowing the true one, and the parts of its effect.

For `--defense experiments/grad_prune_variants.py:NAME`. Each takes Grad-Prune's settings and changes those in its name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bdjax.defenses.grad_prune.grad_prune import PRESETS, grad_prune
from bdjax.defenses.grad_prune.settings import Config
from bdjax.types import Defense, Model


def _variant(**fields: Any) -> Callable[..., Defense]:
    def factory(model: Model, config: Any = None, *, profile: str = "corrected") -> Defense:
        given = config._asdict() if hasattr(config, "_asdict") else dict(config or {})
        return grad_prune(model, {**fields, **given}, profile=profile)

    factory.__doc__ = grad_prune.__doc__
    return factory


# Without knowledge of the trigger.
universal = _variant(triggers="universal")
sample = _variant(triggers="sample")
generator = _variant(triggers="generator")

# The parts: statistics drift as in the published code, filters go without drift, weights are tuned.
PUBLISHED = {field: value for field, value in PRESETS["reference"]._asdict().items() if value != getattr(Config(), field)}
DRIFT: Mapping[str, Any] = {"score_bn": "first_batch_train", "batch_weighting": "sum_of_batch_means"}
drift = _variant(prune=False, tune=False, **DRIFT)
pruning = _variant(tune=False, score_bn="eval")
drift_pruning = _variant(tune=False, **DRIFT)
tuning = _variant(prune=False, score_bn="eval")

# The published procedure with all its quirks, on the same networks as the others; and its rounds alone, before the tuning.
published = _variant(**PUBLISHED)
published_rounds = _variant(tune=False, **PUBLISHED)
