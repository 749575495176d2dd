"""The searched trigger of LF: a smooth pattern that drives a clean classifier's predictions to one class."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bdjax.attacks.low_frequency.dome import blur
from bdjax.attacks.low_frequency.settings import Config
from bdjax.attacks.selection import any_class
from bdjax.data.augment import to_float
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.models import by_name
from bdjax.nn.convolution import lowering_here
from bdjax.train.trainer import trainer
from bdjax.types import Array, Attack, Bool, Dataset, Float, Int, Key, Loop, Member, Model, Recipe, Split, UInt8, Variables

PEAK = 0.2  # of the pattern, of the full range
OVERSHOOT = 1.02
PER_CLASS = 10  # images of each class that the fooling rate is measured on
STEADY, CHANGE = 5, 0.01  # the search ends where the rate of so many passes moves less than this
ROWS = 100  # predicted at once


class _Shared(NamedTuple):
    variables: Variables
    images: Array  # u8[n h w c]
    labels: Array  # i32[n], what the classifier calls them
    rows: Array  # f32[h h], blurs along a column
    columns: Array  # f32[w w]


class _State(NamedTuple):
    moved: Array  # f32[h w c], the displacement before the overshoot
    steps: Array  # i32[], taken; -1: not yet looked at
    origin: Array  # i32[], what the classifier calls the start
    done: Array  # bool[]
    fooled: Array  # bool[], the pattern alone had already changed the prediction


def search(key: Key, dataset: Dataset, config: Config) -> dict[str, Array]:
    """Train a clean classifier f on the data set and search for a pattern that fools it.

    With S the blur of both axes and minmax(a) = 0.2 (a - min a) / max(max a - min a, 1e-12), pass by pass over the images in a
    new order: for each image x with argmax f(x + v) = argmax f(x), DeepFool's displacement dr takes x + v to the target class,
    and v <- minmax(S(v + S dr)). The search ends where adding T = floor(255 v) changes enough predictions, where that share has
    moved less than 0.01 in five passes, or after ``config.passes``.

    Args:
      key: of the stream PREPARE.
      dataset: host arrays; its training rows alone are used.
      config: of LF, with ``trigger`` "optimised".

    Returns:
      {"pattern": u8[h w c] in 0 … 51, "fooling_rate": f32[], of the predictions on at most 10 training images per class that the
      pattern changes, "passes": i32[], "accuracy": f32[], of f on those images}.

    Raises:
      UserError: fewer training images than the search asks for, a classifier whose training diverges, or no pattern found.

    Source: Y. Zeng, W. Park, Z. M. Mao, R. Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021;
      the passes are those of S. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard, "Universal adversarial perturbations", CVPR
      2017.
    Differs: from the code the survey (arXiv 2411.11200) publishes: the classifier sees normalised images in the search too; the
      pattern is added to pixels everywhere; the rate is measured with the pattern as it is added (whole levels, clipped) on 10
      training images per class instead of one test image; a pattern of zeros stays zero instead of dividing by zero; the result
      is floor(255 v), without 127.5 added; the target is the attack's on every data set. The classifier is trained by this
      package's own recipe (cosine schedule, crops and flips), without poison.
    """
    training, choosing, shuffling = (step_key(key, number) for number in range(3))
    labels = np.asarray(dataset.train.labels)
    if config.images > len(labels):
        raise UserError(f"low_frequency.images is {config.images}; {dataset.spec.name} has {len(labels)} training images")
    model, variables = _classifier(training, dataset, config)
    chosen, measured = _draw(choosing, labels, config.images)
    images = jnp.asarray(dataset.train.images[chosen])
    predict = jax.jit(lambda variables, rows: jnp.argmax(model.apply(variables, to_float(rows)).logits, -1))

    def predicted(rows: UInt8[Array | np.ndarray, "n h w c"]) -> Int[np.ndarray, " n"]:
        parts = [predict(variables, jnp.asarray(rows[i : i + ROWS])) for i in range(0, len(rows), ROWS)]
        return np.concatenate([np.asarray(part) for part in parts])

    clean, height, width = np.asarray(dataset.train.images[measured]), *dataset.spec.image_shape[:2]
    before = predicted(clean)
    matrices = (jnp.asarray(blur(side), jnp.float32) for side in (height, width))
    shared = _Shared(variables, images, jnp.asarray(predicted(images), jnp.int32), *matrices)
    one_pass = jax.jit(_pass(model, config))
    pattern, rates = jnp.zeros(dataset.spec.image_shape, jnp.float32), []
    for number in range(config.passes):
        order = jax.random.permutation(step_key(shuffling, number), config.images)
        pattern = one_pass(shared, pattern, order.astype(jnp.int32))
        levels = _levels(pattern)
        triggered = np.minimum(clean.astype(np.int32) + levels, 255).astype(np.uint8)
        rates.append(float(np.mean(predicted(triggered) != before)))
        last = rates[-STEADY:]
        if rates[-1] >= config.fooling_rate or (len(last) == STEADY and max(last) - min(last) < CHANGE):
            break
    if levels.max() == 0:
        raise UserError(
            f"the search for a low_frequency trigger found none: the clean classifier calls all {config.images} images class "
            f"{config.target}, or none was driven there in {config.deepfool_steps} steps; train it longer (classifier_epochs)"
        )
    return {
        "pattern": jnp.asarray(levels, jnp.uint8),
        "fooling_rate": jnp.float32(rates[-1]),
        "passes": jnp.int32(len(rates)),
        "accuracy": jnp.float32(np.mean(before == labels[measured])),
    }


def _classifier(key: Key, dataset: Dataset, config: Config) -> tuple[Model, Variables]:
    model = by_name(config.architecture or "cnn", dataset.spec, width=config.classifier_width, depth=config.classifier_depth)
    model = model.rebuild(lowering=lowering_here(), loop=Loop("scan"))
    recipe = Recipe(epochs=config.classifier_epochs, batch=config.classifier_batch, lr=config.classifier_lr)
    harmless = Attack(lambda key, assets: {}, any_class, lambda trigger, key, x: x, lambda y: y, recipe)
    rows = Split(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels, jnp.int32))
    member = Member(key, jnp.float32(0), jnp.int32(0), jnp.int32(0))
    trained = jax.jit(trainer(model, harmless, len(rows.labels)))(member, rows, None, None)
    if not trained.alive:
        raise UserError(
            f"the clean classifier of the low_frequency trigger diverged at step {int(trained.stopped)}; lower classifier_lr"
        )
    return model, trained.variables


def _draw(key: Key, labels: Int[np.ndarray, " n"], images: int) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " rest"]]:
    """Return the rows the pattern is made from, and up to :data:`PER_CLASS` of each class, from one order of all rows."""
    order = np.asarray(jax.random.permutation(key, len(labels)))
    measured = [
        order[labels[order] == label][-PER_CLASS:] for label in np.unique(labels)
    ]  # from its end: others, where there are enough
    return order[:images], np.concatenate(measured)


def _levels(pattern: Float[Array, "h w c"]) -> Int[np.ndarray, "h w c"]:
    """Return the pattern in grey levels, floor(255 v)."""
    return np.floor(255 * np.asarray(pattern, np.float64) + 1e-3).astype(np.int32)


def _pass(model: Model, config: Config) -> Any:
    """``f(shared, pattern, order) -> pattern``, in [0, 0.2]: once over all images."""

    def deepfool(
        shared: _Shared, start: Float[Array, "h w c"], label: Int[Array, ""]
    ) -> tuple[Float[Array, "h w c"], Bool[Array, ""]]:
        """Return the displacement of ``start`` to the target class, and whether there is a reason to take it."""

        def body(state: _State) -> _State:
            moved, steps, origin, _, _ = state
            logits, pull = jax.vjp(lambda z: model.apply(shared.variables, z[None]).logits[0], start + OVERSHOOT * moved)
            here = jnp.argmax(logits).astype(jnp.int32)
            origin = jnp.where(steps < 0, here, origin)
            fooled = (steps < 0) & (here != label)  # already, by the pattern alone
            gap = logits[config.target] - logits[origin]
            towards = jax.nn.one_hot(config.target, len(logits)) - jax.nn.one_hot(origin, len(logits))
            (slope,) = pull(towards)
            step = jnp.abs(gap) * slope / jnp.sum(jnp.square(slope))
            step = jnp.where(jnp.isfinite(step), step, 0)
            done = (here == config.target) | fooled
            moved = moved + jnp.where(done, 0, step)
            return _State(moved, jnp.maximum(steps, 0) + (~done).astype(jnp.int32), origin, done, fooled)

        def more(state: _State) -> Bool[Array, ""]:
            return ~state.done & (state.steps < config.deepfool_steps)

        first = _State(jnp.zeros_like(start), jnp.int32(-1), jnp.int32(0), jnp.bool_(False), jnp.bool_(False))
        last = lax.while_loop(more, body, first)
        return OVERSHOOT * last.moved, ~last.fooled & (last.steps < config.deepfool_steps - 1)

    def smooth(shared: _Shared, pattern: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        return jnp.einsum("ip,jq,pqc->ijc", shared.rows, shared.columns, pattern, precision=lax.Precision.HIGHEST)

    def one_pass(shared: _Shared, pattern: Float[Array, "h w c"], order: Int[Array, " n"]) -> Float[Array, "h w c"]:
        def image(pattern: Float[Array, "h w c"], row: Int[Array, ""]) -> tuple[Float[Array, "h w c"], None]:
            moved, taken = deepfool(shared, to_float(shared.images[row]) + pattern, shared.labels[row])
            raised = smooth(shared, pattern + smooth(shared, moved))
            low, high = jnp.min(raised), jnp.max(raised)
            scaled = PEAK * (raised - low) / jnp.maximum(high - low, 1e-12)
            return jnp.where(taken, scaled, pattern), None

        return lax.scan(image, pattern, order)[0]

    return one_pass
