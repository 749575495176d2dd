"""The public door: what `bdjax.` offers, that it is light, and that a grid takes one value or several."""

import ast
import copy
import dataclasses
import doctest
import inspect
import pickle
import subprocess
import sys

import pytest

import bdjax
from bdjax.errors import UserError
from bdjax.sweep.grid import AXES, Grid


def test_what_it_says_it_offers_is_there():
    assert set(bdjax.__all__) <= set(dir(bdjax))
    for name in bdjax.__all__:
        assert getattr(bdjax, name) is not None
    assert bdjax.Grid is Grid and "badnets" in bdjax.ATTACKS and "fp" in bdjax.DEFENSES


def test_importing_it_imports_no_library():
    code = "import sys, bdjax; print(sorted({'jax', 'numpy', 'flax', 'polars', 'tyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_an_unknown_name_is_one_error_with_those_that_exist():
    with pytest.raises(AttributeError, match=r"has no attribute 'grid'; it has ATTACKS, .*Grid"):
        _ = bdjax.grid


def test_the_example_runs_as_printed():
    failed, tried = doctest.testmod(bdjax)
    assert tried >= 4 and failed == 0


def test_an_axis_takes_one_value_or_several():
    one = Grid(dataset="digits", model="cnn", attack="badnets", defense="ft", poison_ratio=0.1, spc=10, seeds=0)
    assert one == Grid(
        dataset=("digits",), model=["cnn"], attack=("badnets",), defense=["ft"], poison_ratio=(0.1,), spc=[10], seeds=range(1)
    )
    assert all(isinstance(getattr(one, axis), tuple) for axis in AXES)
    assert dataclasses.replace(one, attack=["blended", "sig"]).attack == ("blended", "sig")


def test_the_typed_signature_of_a_grid_has_its_fields():
    """Type checkers see a signature that takes one value or several; it names every field, in order."""
    (body,) = ast.parse(inspect.getsource(Grid)).body
    (block,) = (node for node in body.body if isinstance(node, ast.If))
    arguments = [argument.arg for argument in block.body[0].args.kwonlyargs]
    assert arguments == [field.name for field in dataclasses.fields(Grid)]


@pytest.mark.parametrize(("arguments", "start"), [(["--version"], f"bdjax {bdjax.__version__}"), (["ls", "models"], "name")])
def test_it_runs_as_a_module(arguments, start):
    done = subprocess.run([sys.executable, "-m", "bdjax", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(start)


def test_a_field_that_a_grid_does_not_have_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown field of Grid 'attak'; allowed: dataset, .* Did you mean 'attack'\?"):
        Grid(attak="badnets")
    one = Grid(attack="sig")
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
