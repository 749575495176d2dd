"""BTI-DBF's inversion without its unlearning: triggered images, made without knowledge of the trigger, for other methods too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data.augment import to_float, to_uint8
from bdjax.defenses.bti_dbf.generator import generator
from bdjax.defenses.bti_dbf.search import History, Rules, checked, searcher
from bdjax.train.loops import steps as run_steps
from bdjax.types import Array, CleanSet, Int, Key, Model, UInt8, Variables

ONE_ROUND = Rules(rounds=1)


class InversionHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    generator_lr: Any = np.float32(1e-3)
    mask_lr: Any = np.float32(0.01)
    pretrain_bound: Any = np.float32(0.1)  # of the mean squared change of an image, in the pre-training
    image_bound: Any = np.float32(0.3)  # of that after it
    feature_bound: Any = np.float32(3)  # of the mean squared change of the benign features
    noise: Any = np.float32(0.03)  # on the images that vote for the target, in standard deviations of the data


class Inverted(NamedTuple):
    """Triggered copies of clean images, made without knowledge of the trigger."""

    images: Array  # u8[n h w c]; rows that are absent (role 0) are as they were
    target: Array  # i32[]: the class that most of them are given
    history: History
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


def inverted_triggers(model: Model, rules: Rules = ONE_ROUND) -> Callable[..., Inverted]:
    """Build the synthesis of triggered images for a network that is left as it is.

    Args:
      model: network.
      rules: with more than one round, the later ones also ask for the class detected in the first.

    Returns:
      ``invert(key, variables, clean: CleanSet, hyper) -> Inverted``. The generator learns from the training rows and draws all
      present ones, as they are; ``hyper`` has the leaves of :class:`InversionHyper` and may have more.

    Raises:
      UserError: a rule out of range, or images too small.

    Source: X. Xu, K. Huang, Y. Li, Z. Qin, K. Ren, "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling
      Benign Features", ICLR 2024: its reconstruction, without the unlearning.
    """
    search = searcher(model, checked(rules, "inverted_triggers"))
    draw = generator(model.spec, rules.generator_width, rules.generator_levels)

    def redraw(shared: Any, images: UInt8[Array, "n h w c"], x: Int[Array, " b"]) -> UInt8[Array, "n h w c"]:
        params, clean = shared
        rows = jnp.minimum(x, clean.labels.shape[0] - 1)
        drawn = to_uint8(draw.apply(params, to_float(clean.images[rows])))
        kept = (clean.role[rows] > 0)[:, None, None, None]
        return images.at[x].set(jnp.where(kept, drawn, clean.images[rows]), mode="drop")

    @jax.jit
    def plan(clean: CleanSet) -> tuple[UInt8[Array, "n h w c"], Int[Array, "t b"]]:
        n = clean.labels.shape[0]
        size = min(rules.batch, n)
        return clean.images, jnp.arange(-(-n // size) * size, dtype=jnp.int32).reshape(-1, size)

    def invert(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Inverted:
        found = search(key, variables, clean, hyper)
        originals, rows = plan(clean)
        images = run_steps(redraw, originals, rows, (found.generator, clean), model.loop)
        return Inverted(images, found.target, found.history, found.network.alive, found.network.stopped)

    return invert
