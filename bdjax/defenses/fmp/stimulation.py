"""FMP's scores: how accurate the network is on images that stimulate one channel of a convolution, channel by channel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import steps as run_steps
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, DataSpec, Float, Int, Key, Model, Variables

AT_ONCE = 512  # images of several channels that go through the network together


class Rules(NamedTuple):
    """Static rules of the scores."""

    images: int  # rows that channels are scored on, at most
    train: bool  # norms take the statistics of the batch, and dropout is on
    normalised: bool  # steps are taken on normalised images, which are cut to [0, 1]; else on pixels
    in_place: bool  # a convolution's map is what published networks write over it afterwards
    augment: bool  # crop and flip the rows


class _Space(NamedTuple):
    """Where steps are taken, in pixels."""

    unit: Array  # f[1 1 1 c]: of a step
    low: Array  # f[1 1 1 c]: where images are cut
    high: Array


class _Started(NamedTuple):
    """The images from which every channel is stimulated."""

    images: Array  # f[b h w c]: after the random step
    labels: Array  # i32[b]
    mask: Array  # f32[b]: 1 for the rows that count
    before: dict[str, Array]  # {convolution: f[b h w d]}: the maps of the images without it
    step: Array  # f[1 1 1 c]


Maps = Callable[[Variables, Array, Array, Key], dict[str, Array]]


def measurer(model: Model, convs: tuple[str, ...], rules: Rules) -> Callable[..., tuple[Array, Array, Array]]:
    """Build ``measure(key, variables, clean, epsilon) -> (correct, entropy, scored)``, see :class:`~.fmp.FMPTrace`.

    Args:
      model: network.
      convs: convolutions in the order of the scores, each with all its channels.
      rules: static.
    """
    maps = _maps(model, convs, rules)
    stimulate, started = _stimulation(model, maps, convs, rules), _starting(model.spec, maps, rules)

    def count(variables: Variables) -> int:
        return sum(tree.get(variables["params"], conv)["kernel"].shape[-1] for conv in convs)

    @jax.jit
    def start(key: Key, variables: Variables, clean: CleanSet, epsilon: Float[Array, ""]) -> Any:
        """What the stimulation reads, the channels in groups, and scores to be filled in."""
        first = started(key, variables, clean, epsilon)
        together = max(1, AT_ONCE // len(first.labels))
        trips = -(-count(variables) // together)
        groups = jnp.arange(trips * together, dtype=jnp.int32).reshape(trips, together)
        zero = jnp.zeros(groups.size, jnp.int32), jnp.zeros(groups.size, at_least_float32(first.images.dtype))
        return (key, variables, first), groups, zero

    @jax.jit
    def finish(
        variables: Variables, correct: Int[Array, " room"], entropy: Float[Array, " room"], mask: Float[Array, " b"]
    ) -> tuple[Int[Array, " channels"], Float[Array, " channels"], Int[Array, ""]]:
        channels = count(variables)
        return correct[:channels], entropy[:channels], jnp.sum(mask).astype(jnp.int32)

    def measure(
        key: Key, variables: Variables, clean: CleanSet, epsilon: Float[Array, ""]
    ) -> tuple[Int[Array, " channels"], Float[Array, " channels"], Int[Array, ""]]:
        shared, groups, zero = start(key, variables, clean, epsilon)
        correct, entropy = run_steps(stimulate, zero, groups, shared, model.loop)
        return finish(variables, correct, entropy, shared[2].mask)

    return measure


def _space(spec: DataSpec, normalised: bool, dtype: Any) -> _Space:
    """The range [0, 1] of pixels, or of normalised values, which in pixels is [mean, mean + std] of each colour."""
    unit = spec.std if normalised else (1.0,) * len(spec.std)
    low = spec.mean if normalised else (0.0,) * len(spec.std)
    high = tuple(least + width for least, width in zip(low, unit, strict=True))
    return _Space(*(jnp.asarray(values, dtype).reshape(1, 1, 1, -1) for values in (unit, low, high)))


def _cut(spec: DataSpec, rules: Rules, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Images cut to the range of their space."""
    space = _space(spec, rules.normalised, images.dtype)
    return jnp.clip(images, space.low, space.high)


def _maps(model: Model, convs: tuple[str, ...], rules: Rules) -> Maps:
    """``maps(variables, images, mask, key) -> {convolution: its output f[b h w d]}``, or what is written over the output."""
    written_over = dict(model.arch.in_place) if rules.in_place else {}
    seen = {conv: written_over.get(conv, conv) for conv in convs}

    def maps(variables: Variables, images: Float[Array, "b h w c"], mask: Float[Array, " b"], key: Key) -> dict[str, Array]:
        taps = model.apply(variables, images, train=rules.train, mask=mask, key=key, record=tuple(seen.values())).taps
        return {conv: taps[address] for conv, address in seen.items()}

    return maps


def _starting(spec: DataSpec, maps: Maps, rules: Rules) -> Callable[..., _Started]:
    """``started(key, variables, clean, epsilon)``: clean images after a random step, and their maps before it."""

    def started(key: Key, variables: Variables, clean: CleanSet, epsilon: Float[Array, ""]) -> _Started:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        rows, mask = (x[0] for x in epoch_plan(stream(key, Stream.ORDER), training_rows(clean), rules.images))
        images, labels = clean.images[rows], clean.labels[rows]
        if rules.augment:
            images = crop_flip(stream(key, Stream.AUGMENT), images, spec.pad, spec.flip)
        images = to_float(images).astype(dtype)
        step = epsilon.astype(dtype) * _space(spec, rules.normalised, dtype).unit
        drawn = stream(key, Stream.DEFENSE)
        # By place: how many rows there are changes no draw.
        keys = jax.vmap(lambda i: jax.random.fold_in(drawn, i))(jnp.arange(len(rows), dtype=jnp.int32))
        signs = jax.vmap(lambda k: jax.random.rademacher(k, spec.image_shape, dtype))(keys)
        first = _cut(spec, rules, images + step * signs)
        before = maps(variables, images, mask, step_key(stream(key, Stream.NETWORK), 1))
        return _Started(first, labels, mask, before, step)

    return started


def _stimulation(model: Model, maps: Maps, convs: tuple[str, ...], rules: Rules) -> Callable[..., tuple[Array, Array]]:
    """A step that scores some channels, numbered through all convolutions."""

    def stimulate(
        shared: Any, carry: tuple[Int[Array, " room"], Float[Array, " room"]], channels: Int[Array, " together"]
    ) -> tuple[Int[Array, " room"], Float[Array, " room"]]:
        key, variables, (started, labels, mask, before, step) = shared
        draws = stream(key, Stream.NETWORK)
        now, pull = jax.vjp(lambda images: maps(variables, images, mask, step_key(draws, 0)), started)
        # Twice the difference is the slope of the squared one; sums or means over it only scale what a sign is taken of.
        away = {conv: (now[conv] - before[conv]) * mask.astype(now[conv].dtype).reshape(-1, 1, 1, 1) for conv in convs}

        def one(channel: Int[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
            images = _cut(model.spec, rules, started + step * jnp.sign(pull(_of_channel(away, channel))[0]))
            logits = model.apply(variables, images, train=rules.train, mask=mask, key=step_key(draws, 2 + channel)).logits
            right = (jnp.argmax(logits, -1).astype(labels.dtype) == labels) & (mask > 0)
            return jnp.sum(right, dtype=jnp.int32), masked_mean(cross_entropy(logits, labels), mask)

        return jax.tree.map(lambda old, new: old.at[channels].set(new.astype(old.dtype)), carry, jax.vmap(one)(channels))

    return stimulate


def _of_channel(maps: dict[str, Array], channel: Int[Array, ""]) -> dict[str, Array]:
    """Maps {convolution: f[b h w d]} of which only the ``channel``, numbered through all of them, is not 0."""
    first, alone = 0, {}
    for conv, z in maps.items():
        mine = first + jnp.arange(z.shape[-1], dtype=jnp.int32) == channel
        alone[conv], first = z * mine.astype(z.dtype).reshape(1, 1, 1, -1), first + z.shape[-1]
    return alone
