"""Every module is reached under its own name: no function of the same name hides it."""

import functools
import importlib
import pkgutil
import types

import pytest

import bdjax

MODULES = sorted(module.name for module in pkgutil.walk_packages(bdjax.__path__, "bdjax."))


def test_every_module_is_what_its_path_says():
    hidden = []
    for name in MODULES:
        module = importlib.import_module(name)
        if functools.reduce(getattr, name.split(".")[1:], bdjax) is not module:
            hidden.append(name)
    assert MODULES and not hidden


@pytest.mark.parametrize(
    ("package", "name"), [("defenses", "anp"), ("attacks", "badnets"), ("models", "cnn"), ("data", "loading")]
)
def test_the_name_of_a_method_is_its_module(package, name):
    found = importlib.import_module(f"bdjax.{package}")
    importlib.import_module(f"bdjax.{package}.{name}")
    assert isinstance(getattr(found, name), types.ModuleType)
