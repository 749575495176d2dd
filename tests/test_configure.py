from typing import NamedTuple

import numpy as np
import pytest

from bdjax.configure import at_least, configure
from bdjax.errors import UserError


class Config(NamedTuple):
    epochs: int = 100
    share: float = 0.5
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    period: int | None = None
    quirk: bool | None = None


PRESETS = {"corrected": Config(quirk=False), "reference": Config(period=100, quirk=True)}


def make(config, profile="corrected"):
    return configure(PRESETS, config, "method", profile)


def test_none_is_the_profile():
    assert make(None) == PRESETS["corrected"]
    assert make(None, "reference") == PRESETS["reference"]


def test_fields_that_are_none_take_the_profiles_value():
    assert make(Config(epochs=3), "reference") == Config(epochs=3, period=100, quirk=True)
    assert make({"quirk": None}, "reference").quirk is True
    assert make(Config(quirk=False), "reference").quirk is False


def test_values_become_plain_python_so_that_equal_configurations_hash_equal():
    made = make({"epochs": np.int64(3), "share": 1, "sizes": [3, 4], "period": np.int32(7)})
    assert made == Config(3, 1.0, "a", (3, 4), 7, False)
    assert [type(v) for v in made] == [int, float, str, tuple, int, bool]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epoch": 3}, r"unknown field of method 'epoch'.*Did you mean 'epochs'"),
        ({"epochs": 3.0}, "method.epochs takes int"),
        ({"epochs": True}, "method.epochs takes int"),
        ({"share": "half"}, "method.share takes float"),
        ({"share": float("nan")}, "method.share must be a finite number"),
        ({"quirk": 1}, "method.quirk takes bool"),
        ({"name": 1}, "method.name takes str"),
        ({"sizes": 3}, "method.sizes takes tuple"),
        (
            (1, 2),
            r"configuration of method is a mapping \{field: value\} or a .*test_configure\.Config; given a builtins\.tuple",
        ),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        make(config)


def test_unknown_profile():
    with pytest.raises(UserError, match=r"unknown profile 'correct'.*Did you mean 'corrected'"):
        make(None, "correct")


def test_at_least():
    at_least("method", Config(epochs=1), epochs=1)
    with pytest.raises(UserError, match=r"method\.epochs must be at least 1; given 0"):
        at_least("method", Config(epochs=0), epochs=1)


def test_one_configuration_alone_is_no_table_of_profiles():
    alone = next(iter(PRESETS.values()))
    with pytest.raises(UserError, match=r"one configuration per profile, dict\.fromkeys\(PROFILES, \w+\(\)\).*method gives it"):
        configure(alone, None, "method", "corrected")
