"""Train SSBA's encoder and decoder together: first the secret must be read, then the image must be kept."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.attacks.ssba import networks as ssba_net
from bdjax.data.augment import to_float
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.train import unfinished
from bdjax.train.loops import steps
from bdjax.train.optimisers import adam
from bdjax.types import Array, Bool, Float, Int, Key, Loop, UInt8

FULL = 15_620  # steps of 20 epochs over 50,000 images, batch 64; a shorter training has a shorter ramp
RAMP, WEIGHT = (1000, 3000), 10.0
READABLE, REQUIRED = 0.9, 0.95  # bit accuracy that starts the ramp, and that the trained networks must exceed
MEASURED = 1000  # training images at most that are measured at the end
QUIET = 15  # seconds between two lines of progress
SECRETS, ORDER = 0, 1  # roles of the key of the batches


class Settings(NamedTuple):
    """How the networks are trained (static)."""

    width: int
    bits: int
    epochs: int
    batch: int
    lr: float
    ramp: tuple[int, int] | None


class Measured(NamedTuple):
    """What the training reached."""

    bit_accuracy: Array  # f32[], of fresh secrets, read from the images as they are stored, with 8 bits
    error: Array  # f32[], mean square of (stored image - image), images in [0, 1]
    weight: Array  # f32[], of the image error in the last step; 10 = the end of the ramp
    readable: Array  # i32[], the step whose bit accuracy exceeded 0.9 first; -1 = none
    ramp: Array  # i32[2], steps after that without weight, and steps of its rise


class _Shared(NamedTuple):
    images: Array  # u8[n h w c]
    key: Key
    lr: Array
    ramp: Array


class _State(NamedTuple):
    params: Any
    moments: Any  # of Adam
    step: Array
    readable: Array
    weight: Array
    accuracy: Array  # of the last step
    error: Array


def ramp_of(given: tuple[int, int] | None, total: int) -> tuple[int, int]:
    """Steps without weight and steps of its rise: those given, or 1000 and 3000 times min(1, total / 15620), at least 1."""
    if given is not None:
        return given
    scale = min(1.0, total / FULL)
    return round(RAMP[0] * scale), max(round(RAMP[1] * scale), 1)


def weight_at(step: Int[Array, ""], readable: Int[Array, ""], ramp: Int[Array, "2"]) -> Float[Array, ""]:
    """clip(10 (n - r0) / r1, 0, 10) with n = step - readable, the steps since the secret was readable; 0 before.

    Args:
      step: of the batch.
      readable: the step whose bit accuracy exceeded 0.9 first; -1 = none yet.
      ramp: (r0, r1) in steps.
    """
    risen = (step - readable - ramp[0]).astype(jnp.float32) * WEIGHT / ramp[1].astype(jnp.float32)
    return jnp.where(readable < 0, jnp.float32(0), jnp.clip(risen, 0, WEIGHT))


def train(key: Key, images: UInt8[Array | np.ndarray, "n h w c"], settings: Settings) -> tuple[dict[str, Any], Measured]:
    """Train both networks on clean images; a host loop over epochs, each one compiled scan, which is kept while it runs.

    The loss of a batch is w mean((E(s, x) - x)²) + BCE(D(E(s, x)), s) with fresh fair bits s for every image and w =
    :func:`weight_at`; Adam on both networks.

    Args:
      key: draws parameters, batches and secrets.
      images: of the data set.
      settings: see :class:`Settings`; the batch is min(batch, n) and the last partial batch of an epoch is dropped.

    Returns:
      ({"encoder": params, "decoder": params}, what they reached).
    """
    batch = min(settings.batch, len(images))
    ramp = ramp_of(settings.ramp, len(images) // batch * settings.epochs)
    programs = _programs(settings.width, settings.bits, batch, tuple(images.shape))
    start_key, measure_key, batch_key = jax.random.split(key, 3)
    shared = _Shared(jnp.asarray(images), batch_key, jnp.float32(settings.lr), jnp.asarray(ramp, jnp.int32))
    state, said = programs.start(start_key), time.monotonic()

    def epoch(state: _State, number: int) -> _State:
        nonlocal said
        state = jax.block_until_ready(programs.epoch(shared, state, jnp.int32(number)))
        if time.monotonic() - said > QUIET:
            said = time.monotonic()
            print(
                f"bdjax: ssba's networks: epoch {number + 1}/{settings.epochs}, bit accuracy {float(state.accuracy):.3f}, "
                f"image error {float(state.error):.5f} with weight {float(state.weight):.1f}",
                file=sys.stderr,
            )
        return state

    state = unfinished.rounds(epoch, state, settings.epochs)
    some = shared.images[:: max(len(images) // MEASURED, 1)][:MEASURED]
    accuracy, error = programs.measure(measure_key, state.params, some)
    return state.params, Measured(accuracy, error, state.weight, state.readable, shared.ramp)


class _Programs(NamedTuple):
    start: Callable[[Key], _State]
    epoch: Callable[[_Shared, _State, Array], _State]
    measure: Callable[[Key, Any, Array], tuple[Array, Array]]


@functools.lru_cache(maxsize=8)
def _programs(width: int, bits: int, batch: int, shape: tuple[int, int, int, int]) -> _Programs:
    """The compiled pieces of a training, for images u8[n h w c] of that shape."""
    rows, optimiser = shape[0], adam()

    def draw(key: Key, size: int) -> tuple[Bool[Array, "b bits"], Float[Array, "b bits"]]:
        drawn = jax.random.bernoulli(key, 0.5, (size, bits))
        return drawn, drawn.astype(jnp.float32)

    def step(shared: _Shared, state: _State, rows: Int[Array, " b"]) -> _State:
        x = to_float(shared.images[rows])
        weight = weight_at(state.step, state.readable, shared.ramp)
        truth, secret = draw(step_key(jax.random.fold_in(shared.key, SECRETS), state.step), batch)

        def loss(params: Any) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            drawn = ssba_net.encode(params["encoder"], width, secret, x)
            logits = ssba_net.decode(params["decoder"], width, bits, drawn)
            error = jnp.mean(jnp.square(drawn - x))
            right = jnp.mean((logits > 0) == truth, dtype=jnp.float32)
            return weight * error + jnp.mean(optax.sigmoid_binary_cross_entropy(logits, secret)), (right, error)

        gradient, (right, error) = jax.grad(loss, has_aux=True)(state.params)
        direction, moments = optimiser.update(gradient, state.moments)
        params = jax.tree.map(lambda p, d: p - shared.lr * d, state.params, direction)
        readable = jnp.where((state.readable < 0) & (right > READABLE), state.step, state.readable)
        return _State(params, moments, state.step + 1, readable, weight, right, error)

    @jax.jit
    def start(key: Key) -> _State:
        networks = ssba_net.drawers(width, bits, shape[1:])
        keys = dict(zip(networks, jax.random.split(key), strict=True))
        params = {name: network(keys[name])["params"] for name, network in networks.items()}
        zero = jnp.float32(0)
        return _State(params, optimiser.init(params), jnp.int32(0), jnp.int32(-1), zero, zero, zero)

    @functools.partial(jax.jit, donate_argnums=1)
    def epoch(shared: _Shared, state: _State, number: Int[Array, ""]) -> _State:
        order = jax.random.permutation(step_key(jax.random.fold_in(shared.key, ORDER), number), rows)[
            : rows // batch * batch
        ].reshape(-1, batch)
        return steps(step, state, order, shared, Loop("scan"))

    @jax.jit
    def measure(key: Key, params: Any, images: UInt8[Array, "n h w c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        x, (truth, secret) = to_float(images), draw(key, len(images))
        stored = embed(params["encoder"], width, secret, x)
        logits = ssba_net.decode(params["decoder"], width, bits, stored)
        return jnp.mean((logits > 0) == truth, dtype=jnp.float32), jnp.mean(jnp.square(stored - x))

    return _Programs(start, epoch, measure)


def embed(params: Any, width: int, secret: Float[Array, "#b bits"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The encoder's images as they are stored: round(255 E(s, x)) / 255, half up; arguments as in :func:`ssba_net.encode`."""
    return to_float(jnp.floor(255 * ssba_net.encode(params, width, secret, images) + 0.5).astype(jnp.uint8))


def check(measured: Measured, settings: Settings, dataset: str) -> None:
    """Refuse networks whose secret is not read, or whose image error never had its full weight.

    Raises:
      UserError: which of the two, and what to change.
    """
    accuracy, weight = float(measured.bit_accuracy), float(measured.weight)
    missed = []
    if not accuracy > REQUIRED:
        missed.append(f"bit accuracy {accuracy:.3f} (must exceed {REQUIRED})")
    if weight < WEIGHT:
        since = "which waits for a bit accuracy above 0.9 in training" if int(measured.readable) < 0 else "its ramp was cut off"
        missed.append(f"weight of the image error {weight:.1f} (must reach {WEIGHT:g}; {since})")
    if missed:
        raise UserError(
            f"ssba's networks are not trained on {dataset}: {'; '.join(missed)}; raise ssba.epochs ({settings.epochs}) or "
            f"ssba.width ({settings.width}), or take fewer ssba.bits ({settings.bits}) or another ssba.lr ({settings.lr:g})"
        )
