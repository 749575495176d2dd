"""Attacks of a user's own, one for every way to come by a trigger: per member, prepared, prepared per seed, learned."""

SOURCE = '''
import jax
import jax.numpy as jnp

from bdjax.attacks.badnets.badnets import badnets
from bdjax.attacks.slots import active, count, most
from bdjax.types import Recipe

LEVEL = 255.0


def corner(trigger, key, images):
    return images.at[:, -3:, -3:].set(jnp.round(LEVEL * trigger["colour"]) / 255)


def coloured(spec, config=None, *, profile="corrected"):
    """A patch of a member's own colour."""
    init = lambda key, assets: {"colour": jax.random.uniform(key, (3,))}
    return badnets(spec, config, profile=profile)._replace(init=init, stamp=corner, recipe=Recipe(shared_trigger=False))


def typical(spec, config=None, *, profile="corrected"):
    """A patch of the mean colour of the training images, which changes with them."""
    def prepare(key, dataset):
        return {"colour": jnp.mean(jnp.asarray(dataset.train.images[:, :8], jnp.float32) / 255, (0, 1, 2))}

    return badnets(spec, config, profile=profile)._replace(init=lambda key, assets: assets, stamp=corner, prepare=prepare)


def seeded(spec, config=None, *, profile="corrected"):
    """A colour that is prepared for every seed."""
    prepare = lambda key, dataset: {"colour": jax.random.uniform(key, (3,))}
    recipe = Recipe(prepare_per="seed", shared_trigger=False)
    return badnets(spec, config, profile=profile)._replace(
        init=lambda key, assets: assets, stamp=corner, prepare=prepare, recipe=recipe
    )


def learned(spec, config=None, *, profile="corrected"):
    """What is added to every pixel starts from a prepared colour and is learned with the network; stronger while training."""
    attack = typical(spec, config, profile=profile)
    init = lambda key, assets: {"added": jnp.broadcast_to(assets["colour"], spec.image_shape) / 8}

    def stamp(trigger, key, images):
        return jnp.round(255 * jnp.clip(images + trigger["added"][None], 0, 1)) / 255

    def twice(trigger, key, images):
        return stamp({"added": 2 * trigger["added"]}, key, images)

    def batch(trigger, key, images, labels, ratio, other):
        hit = active(count(key, ratio, len(labels)), most(len(labels), 0.1))
        hit = jnp.concatenate([hit, jnp.zeros(len(labels) - len(hit), bool)])
        changed = jnp.clip(images + trigger["added"][None], 0, 1)
        images = jnp.where(hit[:, None, None, None], changed, images)
        return images, jnp.where(hit, attack.relabel(labels), labels), jnp.float32(0), trigger

    def update(trigger, gradient):
        return jax.tree.map(lambda value, slope: value - 5 * slope, trigger, gradient)

    recipe = Recipe(epochs=2, batch=25, lr=0.1, shared_trigger=False)
    return attack._replace(init=init, stamp=stamp, train_stamp=twice, batch=batch, update=update, recipe=recipe)
'''
