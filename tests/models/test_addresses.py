"""Addresses that are read off a traced pass are those that networks of the table write down."""

import inspect

import pytest

from bdjax.models import MODELS
from bdjax.models.addresses import described
from bdjax.types import ArchSpec
from tests.later import some_later
from tests.networks import INVERTED, reduced

FOUND = ("registered", "norms", "heads", "stages")


@pytest.mark.parametrize("name", some_later(MODELS, INVERTED))
def test_what_is_read_off_is_what_is_written_down(name):
    model = reduced(name)
    network = inspect.getclosurevars(model.apply).nonlocals["network"]
    found = described(network, model.spec, ArchSpec())
    assert {field: getattr(found, field) for field in FOUND} == {field: getattr(model.arch, field) for field in FOUND}
    assert set(found.feeds) == set(model.arch.feeds)
    assert set(found.activations) == {f"{norm}/act" for norm in model.arch.norms} & set(found.activations)
    assert described(network, model.spec, model.arch) is model.arch


def test_what_is_given_wins():
    model = reduced("cnn")
    network = inspect.getclosurevars(model.apply).nonlocals["network"]
    found = described(network, model.spec, ArchSpec(plug_site="bn2/act"))
    assert found == model.arch._replace(plug_site="bn2/act")
