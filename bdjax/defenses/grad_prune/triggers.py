"""Triggered images for Grad-Prune without knowing the trigger: where its images come from but the attack itself.

A *source* is a function ``(key, variables, clean, hyper) -> images u8 or f32 [n h w c] in [0, 1]``, one for every clean row in
their order, which Grad-Prune takes for the triggered copies; :data:`SOURCES` holds their factories.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data.augment import to_float
from bdjax.defenses.bti_dbf.inversion import inverted_triggers
from bdjax.defenses.bti_dbf.search import Rules as InversionRules
from bdjax.defenses.grad_prune.settings import Config
from bdjax.defenses.nc.control import Rules
from bdjax.defenses.nc.search import Found, searcher, with_trigger
from bdjax.defenses.pbe import Config as Perturbation
from bdjax.defenses.pbe import perturbed
from bdjax.defenses.tuning import Batch
from bdjax.keys import step_key
from bdjax.train.loops import steps as run_steps
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Model, UInt8, Variables


class Source(NamedTuple):
    """Where triggered images come from."""

    make: Callable[[Key, Variables, CleanSet, Any], Array]
    hyper: Any  # default hyper-parameters: those of Grad-Prune and the source's own


class UniversalHyper(NamedTuple):
    """Traced hyper-parameters with one searched pattern for all images; each f32[]."""

    lr: Any = np.float32(1e-3)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    tolerance: Any = np.float32(0.1)
    search_lr: Any = np.float32(0.1)  # the search is Neural Cleanse's
    cost: Any = np.float32(1e-3)  # first weight of the mask's norm
    multiplier: Any = np.float32(2)  # of the cost on its way up; its power 1.5 divides on the way down
    threshold: Any = np.float32(0.98)  # success rate that the search asks for


class SampleHyper(NamedTuple):
    """Traced hyper-parameters with a perturbation for each image; each f32[]."""

    lr: Any = np.float32(1e-3)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    tolerance: Any = np.float32(0.1)
    radius: Any = np.float32(0.02)  # of the perturbation, in pixels of [0, 1]
    step: Any = np.float32(0.2)  # of it, as a share of the radius


class GeneratorHyper(NamedTuple):
    """Traced hyper-parameters with a generator of triggers; each f32[]. Those from ``generator_lr`` on are the inversion's."""

    lr: Any = np.float32(1e-3)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    tolerance: Any = np.float32(0.1)
    generator_lr: Any = np.float32(1e-3)
    mask_lr: Any = np.float32(0.01)
    pretrain_bound: Any = np.float32(0.1)
    image_bound: Any = np.float32(0.3)
    feature_bound: Any = np.float32(3)
    noise: Any = np.float32(0.03)


def universal(model: Model, config: Config) -> Source:
    """All images carry the pattern of the class whose mask is smallest, as Neural Cleanse finds it.

    The smallest mask is also the one with the largest anomaly index below the median. Images of that class carry it too, as the
    true trigger's copies do: their label is the one that it leads to, and they pull at no filter.

    Source: B. Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.
    """
    search = searcher(model, Rules(epochs=config.search_epochs, batch=config.search_batch))

    @jax.jit
    def triggered(found: Found, clean: CleanSet) -> Float[Array, "n h w c"]:
        # A class whose search was not finite is frozen with a mask that says nothing.
        target = jnp.argmin(jnp.where(found.alive, found.norm, jnp.inf))
        trigger = {"mask": found.mask[target][..., None], "pattern": found.pattern[target]}
        return with_trigger(trigger, to_float(clean.images))

    def make(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Float[Array, "n h w c"]:
        return triggered(search(key, variables, clean, hyper), clean)

    return Source(make, UniversalHyper())


def sample(model: Model, config: Config) -> Source:
    """Each image carries a perturbation of its own that raises its cross-entropy: an untargeted adversarial example.

    Those of a backdoored network resemble its triggered images and tend to be called the target, which Progressive Backdoor
    Erasing builds on. As there (:func:`bdjax.defenses.pbe.perturbed`), in eval mode: a random start in the cube of the radius,
    then steps along the sign of the gradient, within the cube and the range of pixels.

    Source: B. Mu et al., "Progressive Backdoor Erasing via Connecting Backdoor and Adversarial Attacks", CVPR 2023; radius, step
      and number of steps as K. Dunnett et al., arXiv 2411.11200, 2024, give them for it.
    """
    how = Perturbation(attack_steps=config.attack_steps, clamp_space="pixel", attack_mode="eval")

    def step(
        shared: Any, images: Float[Array, "n h w c"], x: tuple[Int[Array, " b"], Bool[Array, " b"], Int[Array, ""]]
    ) -> Float[Array, "n h w c"]:
        key, variables, clean, hyper = shared
        rows, mask, trip = x
        batch = Batch(to_float(clean.images[rows]), clean.labels[rows], mask.astype(jnp.float32))
        moved, _ = perturbed(model, how, variables, batch, hyper, step_key(key, trip), False)
        return images.at[jnp.where(mask, rows, len(images))].set(moved.astype(images.dtype), mode="drop")

    @jax.jit
    def start(
        clean: CleanSet,
    ) -> tuple[Float[Array, "n h w c"], tuple[Int[Array, "t b"], Bool[Array, "t b"], Int[Array, " t"]]]:
        present = clean.role > 0
        n = len(present)
        size = min(config.batch, n)
        trips = -(-n // size)
        order = jnp.argsort(~present, stable=True).astype(jnp.int32)  # by place among the present rows: padding changes no draw
        rows = jnp.pad(order, (0, trips * size - n)).reshape(trips, size)
        mask = jnp.pad(present[order], (0, trips * size - n)).reshape(trips, size)
        return to_float(clean.images), (rows, mask, jnp.arange(trips, dtype=jnp.int32))

    def make(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Float[Array, "n h w c"]:
        images, batches = start(clean)
        return run_steps(step, images, batches, (key, variables, clean, hyper), model.loop)

    return Source(make, SampleHyper())


def generator(model: Model, config: Config) -> Source:
    """Each image is drawn anew by BTI-DBF's generator: as before for what the class needs, as different as may be for the rest.

    One round of its reconstruction on the network as it is (:func:`bdjax.defenses.bti_dbf.inversion.inverted_triggers`). Where
    that is not finite the images are not either, so that the member is marked as not finite.

    Source: X. Xu, K. Huang, Y. Li, Z. Qin, K. Ren, "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling
      Benign Features", ICLR 2024.
    """
    fields = ("pretrain_epochs", "mask_epochs", "generator_epochs", "generator_width", "generator_levels", "batch")
    rules = InversionRules(rounds=1, **{field: getattr(config, field) for field in fields})
    invert = inverted_triggers(model, rules)

    @jax.jit
    def checked(images: UInt8[Array, "n h w c"], alive: Bool[Array, ""]) -> Float[Array, "n h w c"]:
        return jnp.where(alive, to_float(images), jnp.nan)

    def make(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Float[Array, "n h w c"]:
        found = invert(key, variables, clean, hyper)
        return checked(found.images, found.alive)

    return Source(make, GeneratorHyper())


SOURCES: dict[str, Callable[[Model, Config], Source]] = {"universal": universal, "sample": sample, "generator": generator}
