"""A small attack, its data and one member, for tests of the core that must not depend on the tables."""

import jax
import jax.numpy as jnp

from bdjax.population import members
from bdjax.types import Attack, Recipe, Split


def corner(images):
    return images.at[:, -2:, -2:].set(1.0)


def patch_attack(**recipe):
    """A patch in the corner, class 0, the first ranks of a permutation."""

    def select(key, labels, count):
        return jnp.argsort(jax.random.permutation(key, labels.shape[0])) < count, jnp.bool_(True)

    recipe = Recipe(**{"epochs": 2, "batch": 40, **recipe})
    return Attack(lambda key, assets: {}, select, lambda t, k, x: corner(x), jnp.zeros_like, recipe)


def data(dataset):
    return Split(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))


def one(seed=0, ratio=0.1, rows=160):
    return jax.tree.map(lambda x: x[0], members([seed], [ratio], rows)[0])
