"""BTI-DBF's losses: of the generator before and after the features are separated, and of the mask that separates them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import masked_mean
from bdjax.defenses.bti_dbf.generator import Generator
from bdjax.defenses.tuning import Batch, Gradient
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32, row
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, DataSpec, Float, Int, Key, Model, Output, Variables

FAR, NEAR = 100.0, 0.01  # weights of the images' change in the pre-training, beyond its bound and within
BENIGN = 0.01  # weight of the benign features' change
SOFT = 1e-7  # tanh(t) / (2 + SOFT) + 1/2 stays inside (0, 1)
UNIT = 0.25  # of changes in pixels: about the standard deviation of CIFAR-10's colours

Change = Callable[[Array, Array, Array], Array]  # (images, drawn, mask) -> f[], mean squared


def with_features(
    model: Model, variables: Variables, images: Float[Array, "b _ _ c"], **mode: Any
) -> tuple[Output, Float[Array, "b h w d"]]:
    """A forward pass and its features."""
    out = model.apply(variables, images, record=("features",), **mode)
    return out, out.taps["features"]


def benign_share(free: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """How benign each feature is, in (0, 1), from its free parameter."""
    return jnp.tanh(free) / (2 + SOFT) + 0.5


def mean_square(a: Float[Array, " b *s"], b: Float[Array, " b *s"], mask: Float[Array, " b"]) -> Float[Array, ""]:
    """Mean of (a - b)² over the rows that count and all else."""
    wide = at_least_float32(a.dtype)
    return masked_mean(jnp.mean(jnp.square(a.astype(wide) - b.astype(wide)), tuple(range(1, a.ndim))), mask)


def change_of(spec: DataSpec, normalised: bool) -> Change:
    """The mean squared change of images, in quarters of the range of pixels or as ``normalised`` ones."""
    unit = spec.std if normalised else (UNIT,) * len(spec.std)

    def change(images: Float[Array, "b h w c"], drawn: Float[Array, "b h w c"], mask: Float[Array, " b"]) -> Float[Array, ""]:
        scale = row(jnp.asarray(unit, images.dtype), images)
        return mean_square(images / scale, drawn / scale, mask)

    return change


def pretraining(model: Model, draw: Generator, change: Change) -> Gradient:
    """The generator learns to leave images, features and predictions as they are; ``extra`` = (network, hyper)."""

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Array]:
        network, hyper = extra
        images, mask = wide_images(batch, variables), batch.mask
        out, features = with_features(model, network, images)
        wanted = jax.nn.log_softmax(_probabilities(out))  # they take the place of logits

        def loss(params: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
            drawn = draw.apply(params, images)
            out, seen = with_features(model, network, drawn)
            prediction = masked_mean(-jnp.sum(_probabilities(out) * wanted, -1), mask)
            image = change(images, drawn, mask)
            weight = jnp.where(image > hyper.pretrain_bound.astype(image.dtype), FAR, NEAR).astype(image.dtype)
            return prediction + mean_square(features, seen, mask) + weight * image, image

        (value, image), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return slope, {}, jnp.stack([value, image])

    return gradient


def decoupling(model: Model) -> Gradient:
    """The mask learns to keep what predictions need, on a copy of the network in train mode; ``extra`` = network."""

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Array]:
        network = {**extra, "batch_stats": variables["batch_stats"]}
        below, benign, others = jax.random.split(key, 3)
        mode = {"train": True, "mask": batch.mask}
        out, features = with_features(model, network, wide_images(batch, network), key=below, **mode)

        def entropy(part: Float[Array, "h w d"], draws: Key) -> Float[Array, ""]:
            seen = part[None].astype(features.dtype) * features
            logits = model.apply(network, seen, start="features", key=draws, **mode).logits
            return masked_mean(cross_entropy(logits, batch.labels), batch.mask)

        def loss(params: Any) -> Float[Array, ""]:
            share = benign_share(params["mask"])
            return entropy(share, benign) - entropy(1 - share, others)

        value, slope = jax.value_and_grad(loss)(variables["params"])
        return slope, out.variables["batch_stats"], value

    return gradient


def generating(model: Model, draw: Generator, change: Change) -> Gradient:
    """The generator learns to change what is not benign; ``extra`` = (network, share, target, whether it counts, hyper)."""

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Array]:
        network, share, target, aimed, hyper = extra
        images, mask = wide_images(batch, variables), batch.mask
        _, features = with_features(model, network, images)
        share = share[None].astype(features.dtype)

        def loss(params: Any) -> tuple[Float[Array, ""], Float[Array, "3"]]:
            drawn = draw.apply(params, images)
            out, seen = with_features(model, network, drawn)
            image = change(images, drawn, mask)
            benign, others = (mean_square(part * features, part * seen, mask) for part in (share, 1 - share))
            outside = (image > hyper.image_bound.astype(image.dtype)) | (benign > hyper.feature_bound.astype(benign.dtype))
            total = jnp.where(outside, image.astype(benign.dtype), BENIGN * benign - others)
            entropy = masked_mean(cross_entropy(out.logits, jnp.full_like(batch.labels, target)), mask)
            return total + jnp.where(aimed, entropy, 0).astype(total.dtype), jnp.stack([image, benign, others])

        (value, changes), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return slope, {}, jnp.concatenate([value[None], changes])

    return gradient


def voting(model: Model, draw: Generator) -> Callable[..., Array]:
    """A step that adds up the classes of generated images."""
    spec = model.spec

    def vote(
        shared: Any, votes: Int[Array, " k"], x: tuple[Int[Array, " b"], Float[Array, " b"], Int[Array, ""]]
    ) -> Int[Array, " k"]:
        key, network, params, clean, hyper = shared
        rows, mask, trip = x
        images = crop_flip(step_key(stream(key, Stream.AUGMENT), trip), clean.images[rows], spec.pad, spec.flip)
        images = to_float(images).astype(jax.tree.leaves(params)[0].dtype)
        noise = jax.random.normal(step_key(stream(key, Stream.DEFENSE), trip), images.shape, images.dtype)
        size = hyper.noise.astype(images.dtype) * row(jnp.asarray(spec.std, images.dtype), images)
        classes = jnp.argmax(model.apply(network, draw.apply(params, images + size * noise)).logits, -1)
        return votes.at[classes].add(mask.astype(votes.dtype))

    return vote


def wide_images(batch: Batch, variables: Variables) -> Float[Array, "b h w c"]:
    """The batch's images in the precision of the parameters."""
    return batch.images.astype(jax.tree.leaves(variables["params"])[0].dtype)


def _probabilities(out: Output) -> Float[Array, "b k"]:
    return jax.nn.softmax(out.logits.astype(at_least_float32(out.logits.dtype)))
