"""What attacks prepare is kept on disk, found again, shared by the members of a seed, and prepared anew when it is another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import population
from bdjax.errors import UserError
from bdjax.keys import Stream, root, stream
from bdjax.models.cnn import cnn
from bdjax.train import assets
from bdjax.train.experiment import Subject, attack_member, defend_member, stage, trigger_form
from bdjax.types import Defended, Defense
from tests.toy import patch_attack

CALLS = []


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path))
    CALLS.clear()
    return tmp_path / "assets"


def level(key, dataset):
    """One random grey level and the mean of the images."""
    CALLS.append(key)
    mean = jnp.mean(jnp.asarray(dataset.train.images).astype(jnp.float32)) / 255
    return {"trigger": {"level": jax.random.uniform(key), "mean": mean}}


def prepared_attack(per, config="a", prepare=level):
    def painted(trigger, key, images):
        return images.at[:, -2:, -2:].set(jnp.round(trigger["level"] * 255) / 255)

    toy = patch_attack(epochs=1, prepare_per=per, shared_trigger=per == "dataset")
    return toy._replace(init=lambda key, assets: assets["trigger"], stamp=painted, prepare=prepare, config=config)


def test_assets_of_a_data_set_are_prepared_once_and_kept(tiny_dataset, cache, capsys):
    first = stage(prepared_attack("dataset"), tiny_dataset, root())
    assert len(CALLS) == 1 and "once; it is kept in" in capsys.readouterr().err
    again = stage(prepared_attack("dataset"), tiny_dataset, root())
    assert len(CALLS) == 1 and len(list(cache.iterdir())) == 1
    for a, b in zip(jax.tree.leaves(first.assets), jax.tree.leaves(again.assets), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.test.triggered, again.test.triggered)
    corner = np.asarray(again.test.triggered)[:, -2:, -2:]
    assert np.all(corner == round(float(first.assets["trigger"]["level"]) * 255))


@pytest.mark.parametrize("other", ["config", "key", "data", "code"])
def test_another_configuration_key_data_set_or_file_prepares_anew(tiny_dataset, other, monkeypatch):
    attack, key, dataset = prepared_attack("dataset"), root(0), tiny_dataset
    assets.prepared(attack, dataset, key)
    if other == "config":
        attack = prepared_attack("dataset", config="b")
    elif other == "key":
        key = root(1)
    elif other == "data":
        dataset = dataset._replace(digest="others")
    else:
        monkeypatch.setattr(assets, "_code", lambda attack: "edited")
    assets.prepared(attack, dataset, key)
    assert len(CALLS) == 2


def test_a_damaged_file_is_named_and_prepared_again(tiny_dataset, cache, capsys):
    attack = prepared_attack("dataset")
    assets.prepared(attack, tiny_dataset, root())
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assets.prepared(attack, tiny_dataset, root())
    assert len(CALLS) == 2 and f"{file} is damaged" in capsys.readouterr().err
    assert assets.load(file) is not None


def test_nothing_is_prepared_for_an_attack_without(tiny_dataset, cache):
    assert assets.prepared(patch_attack(), tiny_dataset, root()) is None and not cache.exists()


def test_members_of_a_seed_share_what_it_prepared(tiny_dataset, cache):
    attack = prepared_attack("seed")
    data = stage(attack, tiny_dataset, root())
    assert data.assets is None and data.triggered is None and data.test.triggered is None
    stack, points = population.members([5, 3], [0.0, 0.1], 160)
    said = []
    ready = population.prepare(attack, stack, tiny_dataset, data, say=said.append)
    levels = np.asarray(ready.assets["trigger"]["level"])
    expected = [float(jax.random.uniform(stream(key, Stream.PREPARE))) for key in stack.key]
    np.testing.assert_allclose(levels, expected, atol=1e-7)
    assert [seed for seed, _ in points] == [5, 5, 3, 3] and len(set(levels.tolist())) == 2
    assert len(list(cache.iterdir())) == 2 and "2 seeds" in said[0]
    CALLS.clear()
    more = population.prepare(attack, population.members([3, 8], [0.1], 160)[0], tiny_dataset, data, say=said.append)
    assert "1 seeds" in said[1] and len(list(cache.iterdir())) == 3  # seed 3 is there
    assert float(more.assets["trigger"]["level"][0]) == levels[2]


def test_the_members_assets_reach_training_and_the_stored_trigger(tiny_dataset):
    attack = prepared_attack("seed")
    data = stage(attack, tiny_dataset, root())
    stack = population.prepare(attack, population.members([0, 1], [0.1], 160)[0], tiny_dataset, data)
    model = cnn(tiny_dataset.spec, 4, lowering="patches")
    trained, counts = population.run(attack_member(model, attack, 160), stack, (data,))
    np.testing.assert_array_equal(trained.trigger["level"], stack.assets["trigger"]["level"])
    form = trigger_form(attack, tiny_dataset, data)
    assert jax.tree.structure(form) == jax.tree.structure(trained.trigger)
    nothing = Defense(lambda key, view, hyper: Defended(view.variables), (), frozenset())
    subjects = Subject(stack._replace(assets=None), trained.variables, trained.trigger)  # a defense needs no assets
    defended = population.run(defend_member(model, attack, nothing, 0), subjects, (data,))
    assert defended.counts.attacked.tolist() == counts.attacked.tolist()


@pytest.mark.parametrize("place", ["/dev/null/x", __file__])
def test_assets_that_could_not_be_kept_are_not_prepared(tiny_dataset, monkeypatch, place):
    """Preparing may take hours: that the cache cannot be written shows before."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", place)
    with pytest.raises(UserError, match=r"cannot write to the cache folder .*/assets: .*; set BDJAX_CACHE_DIR"):
        assets.prepared(prepared_attack("dataset"), tiny_dataset, root())
    members, _ = population.members([0], [0.1], 160)
    with pytest.raises(UserError, match=r"cannot write to the cache folder .*/assets: .*; set BDJAX_CACHE_DIR"):
        population.prepare(prepared_attack("seed"), members, tiny_dataset, None)
    assert CALLS == []
