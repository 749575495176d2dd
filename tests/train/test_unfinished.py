"""A preparation that is killed goes on where it was kept; a damaged file falls back to the one before."""

import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.train import unfinished


def advance(state, number):
    total, seen = state
    return total + jnp.float32(number), seen.at[number].set(1)


def start():
    return jnp.float32(0.5), jnp.zeros(9, jnp.int32)


def killed_at(last):
    def go(state, number):
        if number == last:
            raise KeyboardInterrupt
        return advance(state, number)

    return go


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0)
    return tmp_path / "attack-00.npz"


def gone_on(assets, after):
    """The result after a preparation that was killed, and the rounds that the second one made."""
    with pytest.raises(KeyboardInterrupt), unfinished.beside(assets):
        unfinished.rounds(killed_at(5), start(), 9)
    after()
    made = []
    with unfinished.beside(assets):
        found = unfinished.rounds(lambda state, number: made.append(number) or advance(state, number), start(), 9)
    total, seen = found
    assert float(total) == 36.5 and np.asarray(seen).tolist() == [1] * 9
    assert not list(assets.parent.iterdir())  # what was kept goes with the end of the block
    return made


def test_it_goes_on_at_the_newest_state(assets, capsys):
    assert gone_on(assets, lambda: None) == [5, 6, 7, 8]
    assert "from round 6" in capsys.readouterr().err


def test_a_damaged_state_falls_back_to_the_one_before(assets, capsys):
    def damage():
        newest = assets.with_name(f"{assets.name}.0")
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)

    assert gone_on(assets, damage) == [4, 5, 6, 7, 8]
    assert "is damaged" in capsys.readouterr().err


def test_without_a_place_nothing_is_kept(tmp_path):
    assert float(unfinished.rounds(advance, start(), 9)[0]) == 36.5


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unfinished, "EVERY", 0)
    (tmp_path / "file").write_text("")
    with unfinished.beside(tmp_path / "file" / "attack-00.npz"):
        assert float(unfinished.rounds(advance, start(), 3)[0]) == 3.5
    assert "is not kept" in capsys.readouterr().err
