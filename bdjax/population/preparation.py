"""Assets that an attack prepares per seed: one population of seeds, shared by all members of a seed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.keys import Stream, stream
from bdjax.population.execute import run
from bdjax.population.execution import Execution, default_execution
from bdjax.population.stacks import size, stack, take, unstack
from bdjax.train import assets
from bdjax.train.experiment import Data, preparation
from bdjax.types import Attack, Dataset, Key, Member


def prepare(
    attack: Attack,
    stacked: Member,
    dataset: Dataset,
    data: Data,
    execution: Execution | None = None,
    say: Callable[[str], None] | None = None,
    runner: Callable[[Callable[..., Any], Key, Sequence[str]], Any] | None = None,
) -> Member:
    """Return the members with the assets of their seeds, which are kept on disk; unchanged where nothing is prepared per seed.

    Args:
      attack: its ``prepare`` runs once per seed, whatever the number of ratios.
      stacked: members.
      dataset: the data set, which names the assets.
      data: the same on the device.
      execution: how the population of seeds runs; None = :func:`default_execution`.
      say: gets a line with the number of seeds that are prepared.
      runner: ``(preparation of one key, keys, names of their assets) -> assets`` runs the population in another way than
        :func:`bdjax.population.execute.run`, as one that keeps what it has so far.
    """
    if attack.prepare is None or attack.recipe.prepare_per != "seed":
        return stacked
    words = np.asarray(jax.random.key_data(stacked.key))
    _, first, which = np.unique(words, axis=0, return_index=True, return_inverse=True)
    keys = jax.vmap(lambda key: stream(key, Stream.PREPARE))(take(stacked.key, first))
    places = [assets.place(attack, dataset, key) for key in keys]
    found = [assets.load(path) for path in places]
    missing = [at for at, asset in enumerate(found) if asset is None]
    if missing:
        assets.ready(places[0].parent)
        if say is not None:
            name = places[0].name.rpartition("-")[0]
            say(f"{name} prepares its trigger for {len(missing)} seeds, once; it is kept in {places[0].parent}")
        function, wanted = preparation(attack, dataset), take(keys, missing)
        if runner is None:
            made = run(function, wanted, (data,), execution or default_execution())
        else:
            made = runner(function, wanted, [places[seed].stem for seed in missing])
        for seed, asset in zip(missing, unstack(jax.device_get(made)), strict=True):
            found[seed] = assets.save(places[seed], asset)
    each_seed = stack(jax.tree.map(jnp.asarray, found))
    assert size(each_seed) == len(first)
    return stacked._replace(assets=take(each_seed, np.ravel(which)))
