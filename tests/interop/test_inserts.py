"""A plug and bounds leave and come back beside a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.interop import inserts
from bdjax.models.cnn import cnn
from tests.networks import drawn, spec


@pytest.fixture(scope="module")
def model():
    return cnn(spec(4, 8), 2)


@pytest.fixture(scope="module")
def repaired(model):
    """A network with a plug that does something and bounds that cut."""
    generator = np.random.default_rng(0)
    plug = {"kernel": generator.normal(size=(1, 1, 8, 8)), "scale": np.full(8, 0.7), "bias": np.full(8, 0.1)}
    bounds = {"bn1/act": np.full(2, 0.2), "bn3/act": np.full(8, np.inf)}
    added = {"plug": plug, "plug_stats": {"mean": np.zeros(8), "var": np.ones(8)}, "bounds": bounds}
    return {**drawn(model), **jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), added)}


def test_what_was_written_comes_back_and_computes_the_same(model, repaired, tmp_path):
    plain, added = inserts.parted(repaired)
    assert set(plain) == {"params", "batch_stats"} and set(added) == {"plug", "plug_stats", "bounds"}
    inserts.write(tmp_path / "net.pt", added, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt.inserts.npz"]
    found = inserts.read(tmp_path / "net.pt", model, plain)
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 3))
    logits = [np.asarray(model.apply(v, images).logits) for v in (repaired, found, plain)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_a_bound_below_0_leaves_as_0_and_acts_as_0_where_a_file_holds_one(model, repaired, tmp_path):
    plain, images = inserts.parted(repaired)[0], jax.random.uniform(jax.random.key(0), (3, 8, 8, 3))
    below, at = ({"bn1/act": jnp.asarray([z, 0.2], jnp.float32)} for z in (-0.3, 0.0))
    inserts.write(tmp_path / "net.pt", {"bounds": below}, overwrite=False)
    with np.load(inserts.place(tmp_path / "net.pt")) as archive:
        np.testing.assert_array_equal(archive["bounds/bn1/act"], at["bn1/act"])
    np.savez(inserts.place(tmp_path / "old.pt"), **{"bounds/bn1/act": np.asarray(below["bn1/act"])})
    want = np.asarray(model.apply({**plain, "bounds": at}, images).logits)
    assert not np.allclose(want, model.apply(plain, images).logits)
    for name in ("net.pt", "old.pt"):
        np.testing.assert_array_equal(model.apply(inserts.read(tmp_path / name, model, plain), images).logits, want)


def test_nothing_to_write_leaves_no_file_and_a_plain_network(model, repaired, tmp_path):
    plain, added = inserts.parted(repaired)
    inserts.write(tmp_path / "net.pt", added, overwrite=False)
    with pytest.raises(UserError, match="exists already"):
        inserts.write(tmp_path / "net.pt", {}, overwrite=False)
    inserts.write(tmp_path / "net.pt", {}, overwrite=True)  # else the plain network would come back with another one's plug
    assert list(tmp_path.iterdir()) == []
    assert set(inserts.read(tmp_path / "net.pt", model, plain)) == {"params", "batch_stats"}


def test_a_file_that_does_not_fit_is_refused(model, repaired, tmp_path):
    plain, added = inserts.parted(repaired)
    path = tmp_path / "net.pt"
    inserts.write(path, {**added, "bounds": {"bn9/act": np.ones(2, np.float32)}}, overwrite=True)
    with pytest.raises(UserError, match="does not fit cnn: bn9/act"):
        inserts.read(path, model, plain)
    inserts.write(path, {"plug": added["plug"]}, overwrite=True)
    with pytest.raises(UserError, match="its statistics"):
        inserts.read(path, model, plain)
    inserts.write(path, {"bounds": {"bn1/act": np.ones(3, np.float32)}}, overwrite=True)
    with pytest.raises(UserError, match="does not fit cnn of width 2"):
        inserts.read(path, model, plain)
    inserts.place(path).write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="is damaged"):
        inserts.read(path, model, plain)
