"""What Grad-Prune computes of a network in one go: wrong rows and losses in eval mode, and slopes of the unlearning loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.data.augment import to_float
from bdjax.defenses.batches import epoch_plan, training_rows
from bdjax.defenses.grad_prune.settings import Config
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import leading
from bdjax.train.loops import steps as run_steps
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Model, Num, Variables


class Plan(NamedTuple):
    """Rows in batches, those that count in the first ones."""

    rows: Array  # i32[t b]
    mask: Array  # f32[t b]
    divisor: Array  # f32[t]: what the sum over a batch is divided by
    trips: Array  # i32[]: batches with a row


def pixels(images: Num[Array, "b h w c"], dtype: Any) -> Float[Array, "b h w c"]:
    """Images, bytes or floats in [0, 1], as floats in [0, 1]."""
    return (to_float(images) if images.dtype == jnp.uint8 else images).astype(dtype)


def sizes(rows: int, classes: int, batch: int) -> tuple[int, int]:
    """(training, validation) rows at once, at most ``batch``, such that the usual split of so many rows fills all batches evenly.

    That keeps a tenth of each class for validation, at least one row. With another split the batches are less full.
    """
    validation = min(max(1, rows // classes // 10) * classes, rows)

    def even(count: int) -> int:
        return max(1, -(-count // max(1, -(-count // batch))))

    return even(rows - validation), even(validation)


def plan(key: Key, present: Bool[Array, " n"], size: int, per_image: bool) -> Plan:
    """Shuffled batches of the present rows; sums over them make the mean over all rows, or the sum of the batches' means."""
    rows, mask = epoch_plan(key, present, size)
    each = jnp.sum(mask, 1)
    divisor = jnp.broadcast_to(jnp.sum(each), each.shape) if per_image else each
    return Plan(rows, mask, jnp.maximum(divisor, 1), jnp.sum(each > 0, dtype=jnp.int32))


def validation_plans(config: Config, clean: CleanSet, classes: int) -> Callable[[Key, Array], Plan]:
    """``at(key, number) -> Plan`` of the validation rows: shuffled anew for every number where the batches matter."""
    n, per_image = clean.labels.shape[0], config.batch_weighting == "per_image"
    size = sizes(n, classes, config.batch)[1] if per_image else config.batch
    return _plans(clean.role == 2, size, per_image, anew=not per_image)


def training_plans(config: Config, clean: CleanSet, classes: int) -> Callable[[Key, Array], Plan]:
    """``at(key, number) -> Plan`` of the training rows, likewise."""
    n, per_image = clean.labels.shape[0], config.batch_weighting == "per_image"
    steady = per_image and config.score_bn == "eval"  # neither the batches nor which one is first matter
    size = sizes(n, classes, config.batch)[0] if steady else config.batch
    return _plans(training_rows(clean), size, per_image, anew=not steady)


def _plans(present: Bool[Array, " n"], size: int, per_image: bool, *, anew: bool) -> Callable[[Key, Array], Plan]:
    fixed = None if anew else plan(jax.random.key(0), present, size, per_image)

    def at(key: Key, number: Int[Array, ""]) -> Plan:
        return plan(step_key(stream(key, Stream.ORDER), number), present, size, per_image) if fixed is None else fixed

    return at


def measurer(model: Model) -> Callable[..., tuple[Array, Array]]:
    """``measure(variables, sets, labels, plan) -> (wrong rows, cross-entropy)`` of s stacks of images, in eval mode."""

    def step(
        shared: Any,
        carry: tuple[Int[Array, " s"], Float[Array, " s"]],
        x: tuple[Int[Array, " b"], Float[Array, " b"], Float[Array, ""]],
    ) -> tuple[Int[Array, " s"], Float[Array, " s"]]:
        variables, sets, labels = shared
        rows, mask, divisor = x
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        logits = model.apply(variables, jnp.concatenate([pixels(images[rows], dtype) for images in sets])).logits
        truth, counted = jnp.tile(labels[rows], len(sets)), (mask > 0)[None]
        entropy = cross_entropy(logits, truth).reshape(len(sets), -1)
        wrong = (jnp.argmax(logits, -1).astype(truth.dtype) != truth).reshape(len(sets), -1)
        total = jnp.sum(jnp.where(counted, entropy, 0), 1) / divisor.astype(entropy.dtype)
        return carry[0] + jnp.sum(wrong & counted, 1, dtype=jnp.int32), carry[1] + total

    def measure(
        variables: Variables, sets: tuple[Num[Array, "n h w c"], ...], labels: Int[Array, " n"], plan: Plan
    ) -> tuple[Int[Array, " s"], Float[Array, " s"]]:
        dtype = at_least_float32(jax.tree.leaves(variables["params"])[0].dtype)
        zero = jnp.zeros(len(sets), jnp.int32), jnp.zeros(len(sets), dtype)
        return leading(step, zero, plan[:3], plan.trips, (variables, sets, labels), model.loop)

    return measure


def scorer(model: Model, *, first_in_train_mode: bool) -> Callable[..., tuple[dict[str, Array], Any]]:
    """``slopes(key, variables, kernels, images, labels, plan) -> (gradients, running statistics)``, in eval mode.

    Args:
      model: network.
      first_in_train_mode: the first batch is seen in train mode, and the running statistics that it leaves serve the others.

    Returns:
      Gradients of the unlearning loss, the cross-entropy of the images' labels, {path: that of the kernel} for each of the paths
      ``kernels``.
    """

    def slope(shared: Any, carry: tuple[Any, Any], x: tuple[Array, Array, Array], train: bool) -> tuple[Any, Any]:
        variables, free, images, labels, draws = shared
        sums, statistics = carry
        rows, mask, divisor = x
        dtype = jax.tree.leaves(variables["params"])[0].dtype

        def loss(free: Any) -> tuple[Float[Array, ""], Any]:
            now = {**variables, "params": tree.replace(variables["params"], free), "batch_stats": statistics}
            shown = pixels(images[rows], dtype)
            out = model.apply(now, shown, train=True, mask=mask, key=draws) if train else model.apply(now, shown)
            entropy = cross_entropy(out.logits, labels[rows])
            return jnp.sum(jnp.where(mask > 0, entropy, 0)) / divisor.astype(entropy.dtype), out.variables["batch_stats"]

        found, new = jax.grad(loss, has_aux=True)(free)
        present = jnp.sum(mask) > 0
        return jax.tree.map(jnp.add, sums, found), jax.tree.map(lambda a, b: jnp.where(present, a, b), new, statistics)

    def opening(shared: Any, carry: tuple[Any, Any], x: Any) -> tuple[Any, Any]:
        return slope(shared, carry, x, True)

    def still(shared: Any, carry: tuple[Any, Any], x: Any) -> tuple[Any, Any]:
        return slope(shared, carry, x, False)

    def slopes(
        key: Key, variables: Variables, kernels: tuple[str, ...], images: Num[Array, "n h w c"], labels: Array, plan: Plan
    ) -> tuple[dict[str, Array], Any]:
        free = {path: tree.get(variables["params"], path) for path in kernels}
        shared = (variables, free, images, labels, key)
        carry: Any = jax.tree.map(jnp.zeros_like, free), variables["batch_stats"]
        batches, trips = plan[:3], plan.trips
        if first_in_train_mode:
            carry = run_steps(opening, carry, jax.tree.map(lambda x: x[:1], batches), shared, model.loop._replace(kind="scan"))
            batches, trips = jax.tree.map(lambda x: x[1:], batches), trips - 1
        if len(batches[0]) and (free or not first_in_train_mode):  # without a kernel to score, only the first batch does anything
            carry = leading(still, carry, batches, trips, shared, model.loop)
        return carry

    return slopes
