"""Small clean sets and networks for the defenses' own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models.cnn import cnn
from bdjax.types import CleanSet


@pytest.fixture(scope="session")
def plain_spec(tiny_spec):
    """The made-up data set without augmentation."""
    return tiny_spec._replace(pad=0)


@pytest.fixture(scope="session")
def model(plain_spec):
    """With patches it compiles a little longer than with native convolutions, and runs ten times as fast in a loop on a CPU."""
    return cnn(plain_spec, 4, lowering="patches")


@pytest.fixture(scope="session")
def variables(model):
    """A network that is no fresh one: statistics, scales and biases are drawn too."""
    start = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
    leaves, structure = jax.tree.flatten(start)
    generator = np.random.default_rng(0)
    moved = [x + generator.uniform(0, 0.3, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.map(jnp.asarray, jax.tree.unflatten(structure, moved))


@pytest.fixture(scope="session")
def clean(tiny_dataset):
    """``clean(train, validation)``: that many rows per class, class-major, validation first."""

    def make(train, validation=0):
        images, labels, role = [], [], []
        for k in range(4):
            rows = np.flatnonzero(tiny_dataset.train.labels == k)[: train + validation]
            images.append(tiny_dataset.train.images[rows])
            labels.append(tiny_dataset.train.labels[rows])
            role.append(np.r_[np.full(validation, 2), np.full(train, 1)])
        arrays = np.concatenate(images), np.concatenate(labels), np.concatenate(role).astype(np.int8)
        return CleanSet(*map(jnp.asarray, arrays), jnp.asarray(np.int32(train + validation)))

    return make


@pytest.fixture(scope="session")
def padded():
    """``padded(clean, rows)``: that many absent rows of garbage put among the present ones."""

    def make(clean, rows):
        generator = np.random.default_rng(5)
        n = len(clean.labels)
        place = np.sort(generator.permutation(n + rows)[:n])  # where the present rows go
        images = generator.integers(0, 256, (n + rows, *clean.images.shape[1:]), dtype=np.uint8)
        labels, role = np.zeros(n + rows, np.int32), np.zeros(n + rows, np.int8)
        images[place], labels[place], role[place] = np.asarray(clean.images), np.asarray(clean.labels), np.asarray(clean.role)
        return CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(role), clean.spc)

    return make


@pytest.fixture
def wide():
    """64-bit numbers while the test runs, and a function that widens a tree's floats."""

    def widen(tree):
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)) if np.asarray(x).dtype == np.float32 else x, tree)

    with jax.enable_x64(True):
        yield widen


@pytest.fixture(scope="session")
def distance():
    """Largest absolute difference between two trees."""
    return lambda a, b: max(
        float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        if np.size(x)
    )
