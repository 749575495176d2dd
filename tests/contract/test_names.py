"""No code asks for a method, a network or a data set by its name: what is particular about one is a field, a hook or a table."""

import ast
from pathlib import Path

import pytest

import bdjax
from bdjax.attacks.table import ATTACKS, IMAGES_ONLY
from bdjax.data import DATASETS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS

NAMES = {*ATTACKS, *IMAGES_ONLY, *DEFENSES, *MODELS, *DATASETS}
FILES = sorted(Path(bdjax.__file__).parent.rglob("*.py"))


def compared(code):
    """The names that comparisons, memberships and cases of a module ask for, with their lines."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        constants = [leaf for part in parts if not isinstance(part, ast.Call) for leaf in ast.walk(part)]
        found += [(leaf.value, leaf.lineno) for leaf in constants if isinstance(leaf, ast.Constant) and leaf.value in NAMES]
    return found


def test_no_room_compares_the_name_of_a_method_a_network_or_a_data_set():
    assert {path.name: names for path in FILES if (names := compared(path.read_text()))} == {}


@pytest.mark.parametrize(
    "code", ['x == "stored"', 'a.name != "cifar10"', 'x in ("none", "cnn")', 'match x:\n    case "wanet":\n        pass']
)
def test_a_comparison_with_a_name_is_seen(code):
    assert len(compared(code)) == 1
