"""The stored numbers are those of every method's edition, and are not replaced while the edition stays."""

import json

import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.models.cnn import cnn
from tests.golden import make, numbers
from tests.networks import reduced
from tests.short import TINY


def edition(name):
    """Of the method of an entry."""
    kind, _, rest = name.partition("/")
    own, _, last = rest.rpartition("-")
    if kind == "network":
        return reduced(own).edition
    return (ATTACKS[own](TINY, profile=last) if kind == "attack" else DEFENSES[own](cnn(TINY, 4), profile=last)).edition


def test_numbers_are_stored_of_every_method_and_network_in_its_edition():
    assert {name: entry["edition"] for name, entry in numbers.stored().items()} == {name: edition(name) for name in make.nodes()}


def entry(number, edition=1):
    """What a test notes."""
    return {"name": "attack/a-corrected", "edition": edition, "numbers": {"x": [number, 0.0, 0.0]}}


def test_numbers_that_changed_are_stored_only_where_the_edition_rose():
    kept = {"attack/a-corrected": {"edition": 1, "numbers": {"x": [1.0, 0.0, 0.0]}}}
    assert numbers.merged(kept, [entry(1.0004)]) == (kept, [])  # rounding: what is stored stays
    assert numbers.merged(kept, [entry(1.1)]) == (kept, ["attack/a-corrected"])
    after, refused = numbers.merged(kept, [entry(1.1, 2)])
    assert not refused and after["attack/a-corrected"] == {"edition": 2, "numbers": {"x": [1.1, 0.0, 0.0]}}
    assert numbers.merged(after, [entry(1.1, 1)])[1] == ["attack/a-corrected"]  # an edition never falls
    assert numbers.merged(after, [entry(1.2, 2)], ["attack/a-corrected"])[0]["attack/a-corrected"]["numbers"] == {
        "x": [1.2, 0.0, 0.0]
    }
    assert not numbers.merged({}, [entry(3.0)])[1]


def test_a_result_that_changes_fails_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(numbers.NOTED, raising=False)
    monkeypatch.setattr(numbers, "STORED", tmp_path / "numbers.json")
    values = np.linspace(-1, 2, 50, dtype=np.float32)
    numbers.write({"defense/a-corrected": {"edition": 1, "numbers": {"x": numbers.numbers(values)}}})
    numbers.check("defense/a-corrected", 1, x=values * np.float32(1 + 1e-4))
    for changed in (values * 1.01, values[::-1], -values, np.append(values, 0)):
        with pytest.raises(AssertionError, match=r"raise the edition of the method.*tests\.golden\.make defense/a-corr"):
            numbers.check("defense/a-corrected", 1, x=changed)
    with pytest.raises(AssertionError, match="are those of edition 1, and it says 2"):
        numbers.check("defense/a-corrected", 2, x=values)
    with pytest.raises(AssertionError, match="nothing is stored of defense/b-corrected"):
        numbers.check("defense/b-corrected", 1, x=values)


def test_the_ends_of_long_optimisations_are_compared_roughly():
    kept = {"x~": [1.0, 0.5, 0.1], "y": [1.0, 0.5, 0.1]}
    assert numbers.close({**kept, "x~": [1.2, 0.9, -3.0]}, kept)
    assert not numbers.close({**kept, "x~": [1.4, 0.5, 0.1]}, kept)
    for other in ([1.2, 0.5, 0.1], [1.0, 0.51, 0.1], [1.0, 0.5, 0.2]):
        assert not numbers.close({**kept, "y": other}, kept)


def test_a_small_change_of_masks_that_are_nearly_one_is_seen():
    masks = 1 - 0.01 * np.random.default_rng(0).random(40)
    kept = {"masks": numbers.numbers(masks)}
    assert numbers.close({"masks": numbers.numbers(masks + 1e-8)}, kept)
    assert not numbers.close({"masks": numbers.numbers(1 - 1.01 * (1 - masks))}, kept)


def test_what_is_not_finite_or_not_a_number_does_not_spoil_the_others():
    found = numbers.numbers({"a": np.float32([3, np.nan]), "b": np.arange(4)})
    assert found[:2] == [pytest.approx(np.sqrt(4.5)), pytest.approx(1.5)]
    assert numbers.numbers({}) is None and numbers.numbers(np.arange(3)) is None


def test_entries_are_chosen_by_the_name_of_the_method():
    names = ["attack/wanet-corrected", "attack/wanet-reference", "defense/ft-corrected", "defense/ft_sam-corrected"]
    assert make.chosen(names, ["wanet"]) == names[:2] and make.chosen(names, []) == names
    assert make.chosen(names, ["ft"]) == ["defense/ft-corrected"] and make.chosen(names, [names[3]]) == [names[3]]
    assert make.short("network/cnn-step") == "cnn"
    with pytest.raises(SystemExit):
        make.main(["wanett"])


def test_the_file_can_be_read_and_compared_line_by_line():
    content = numbers.stored()
    lines = numbers.STORED.read_text().splitlines()
    assert len(lines) == len(content) + 2 and list(content) == sorted(content)
    assert all(json.dumps(name) in line for name, line in zip(content, lines[1:], strict=False))
