"""What a file of the user's own imports or names is part of its hash, and belongs to it alone."""

import hashlib
import importlib.util
import os
import sys

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.plugins import load
from bdjax.plugins.load import factory, settled, source_digest
from bdjax.train import assets
from bdjax.types import DefenderView

FACTORY = """

def mine(model, config=None, *, profile="corrected"):
    from bdjax.types import Defense, Defended

    def defend(key, view, hyper):
        return Defended({**view.variables, "seen": value()})

    return Defense(defend, (), frozenset(), None)
"""
INSERTED = "import pathlib, sys\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\nfrom factor import FACTOR\n"
VALUE = "\n\ndef value():\n    return FACTOR\n"


def write(folder, **files):
    """Python files in a folder, by their paths without ".py"; gives the name of the method in mine.py."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{folder}/mine.py:mine"


@pytest.fixture
def model(tiny_spec):
    return cnn(tiny_spec, 4)


def seen(name, model):
    """What the repair of a method puts into the variables."""
    made = factory("defense", name, {})(model, None, profile="corrected")
    return made.defend(None, DefenderView({}), ()).variables["seen"]


LAZY = "def value():\n    from factor import FACTOR\n    return FACTOR\n"
WAYS = {
    "from the folder put on the path": (INSERTED + VALUE, "factor"),
    "from beside it": ("from factor import FACTOR\n" + VALUE, "factor"),
    "relatively": ("from .factor import FACTOR\n" + VALUE, "factor"),
    "a module, relatively": ("from . import factor\n\n\ndef value():\n    return factor.FACTOR\n", "factor"),
    "inside the function": (LAZY, "factor"),
    "relatively inside the function": ("def value():\n    from .factor import FACTOR\n    return FACTOR\n", "factor"),
    "by importlib": ("import importlib\nFACTOR = importlib.import_module('factor').FACTOR\n" + VALUE, "factor"),
    "by importlib, late": ("import importlib\n\n\ndef value():\n    return importlib.import_module('factor').FACTOR\n", "factor"),
    "from a package": ("from lib.deep.factor import FACTOR\n" + VALUE, "lib/deep/factor"),
    "through another": ("from other import FACTOR\n" + VALUE, "factor"),
    "through a package's own import": ("from package import FACTOR\n" + VALUE, "package/inner"),
    "from a folder put on the path": (
        "import os, sys\nsys.path.append(os.path.join(os.path.dirname(__file__), 'lib'))\nfrom inlib import FACTOR\n" + VALUE,
        "lib/inlib",
    ),
    "by its path": (
        "import importlib.util, pathlib\n"
        "spec = importlib.util.spec_from_file_location('any', pathlib.Path(__file__).with_name('factor.py'))\n"
        "found = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(found)\nFACTOR = found.FACTOR\n" + VALUE,
        "factor",
    ),
    "where it may fail": ("try:\n    from factor import FACTOR\nexcept ImportError:\n    FACTOR = 0\n" + VALUE, "factor"),
}
BESIDE = {
    "other": "from factor import FACTOR\n",
    "package/__init__": "from .inner import FACTOR\n",
    "package/inner": "FACTOR = 1\n",
    "lib/inlib": "FACTOR = 1\n",
    "lib/deep/factor": "FACTOR = 1\n",
    "factor": "FACTOR = 1\n",
    "unrelated": "FACTOR = 1\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_import_is_another_experiment_and_the_new_one_runs(tmp_path, model, way):
    text, edited = WAYS[way]
    name = write(tmp_path, mine=text + FACTORY, **BESIDE)
    before = source_digest(name)
    assert seen(name, model) == 1 and source_digest(name) == before
    write(tmp_path, unrelated="FACTOR = 2\n")
    assert source_digest(name) == before
    write(tmp_path, **{edited: "FACTOR = 2\n"})  # as many bytes, and perhaps the same moment: compiled files may not notice
    assert source_digest(name) != before and seen(name, model) == 2
    write(tmp_path, **{edited: "FACTOR = 1\n"})
    assert source_digest(name) == before and seen(name, model) == 1


def test_the_file_itself_is_run_again_when_it_was_edited_within_the_same_moment(tmp_path, model):
    name = write(tmp_path, mine="FACTOR = 1\n" + VALUE + FACTORY)
    file = tmp_path / "mine.py"
    assert seen(name, model) == 1
    times = file.stat()
    file.write_text(file.read_text().replace("FACTOR = 1", "FACTOR = 2"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert seen(name, model) == 2


def test_files_that_the_text_names_count_too(tmp_path):
    np.save(tmp_path / "field.npy", np.zeros(3))
    name = write(
        tmp_path, mine="import pathlib\nFIELD = pathlib.Path(__file__).parent / 'field.npy'\n" + LAZY + FACTORY, **BESIDE
    )
    before = source_digest(name)
    np.save(tmp_path / "field.npy", np.ones(3))
    assert source_digest(name) != before


def test_a_file_without_helpers_keeps_its_hash_and_no_path_enters_that_of_others(tmp_path):
    alone = write(tmp_path / "alone", mine="FACTOR = 1\n" + VALUE + FACTORY, factor="FACTOR = 1\n")
    assert source_digest(alone) == hashlib.sha256((tmp_path / "alone" / "mine.py").read_bytes()).hexdigest()
    digests = {source_digest(write(tmp_path / folder, mine=INSERTED + VALUE + FACTORY, **BESIDE)) for folder in ("a", "b/c")}
    assert len(digests) == 1 and source_digest(alone) not in digests
    assert source_digest("ft") is None


def test_modules_of_one_name_belong_to_the_files_beside_them(tmp_path, model):
    first = write(tmp_path / "a", mine=INSERTED + VALUE + FACTORY, factor="FACTOR = 1\n")
    second = write(tmp_path / "b", mine=LAZY + FACTORY, factor="FACTOR = 2\n")
    third = write(
        tmp_path / "c", mine="try:\n    from factor import FACTOR\nexcept ImportError:\n    FACTOR = 3\n" + VALUE + FACTORY
    )
    path, known = list(sys.path), set(sys.modules)
    assert [seen(name, model) for name in (first, second, third, second, first)] == [1, 2, 3, 2, 1]
    assert sys.path == path and "factor" not in sys.modules
    assert all(name.startswith("bdjax_file_") for name in set(sys.modules) - known)


def test_what_the_program_itself_imported_stays_its_own(tmp_path, model, monkeypatch):
    name = write(tmp_path, mine=INSERTED + VALUE + FACTORY, factor="FACTOR = 1\n")
    spec = importlib.util.spec_from_loader("factor", loader=None)
    theirs = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "factor", theirs)
    assert seen(name, model) == 1 and sys.modules["factor"] is theirs


def test_a_helper_that_two_files_share_is_part_of_both(tmp_path):
    names = [write(tmp_path, mine=INSERTED + VALUE + FACTORY, factor="FACTOR = 1\n")]
    (tmp_path / "yours.py").write_text(INSERTED + VALUE + FACTORY.replace("mine", "yours"))
    names.append(f"{tmp_path}/yours.py:yours")
    before = [source_digest(name) for name in names]
    write(tmp_path, factor="FACTOR = 2\n")
    assert all(source_digest(name) != digest for name, digest in zip(names, before, strict=True))


@pytest.mark.parametrize("text", [INSERTED + VALUE, LAZY])
def test_a_helper_that_is_gone_is_named(tmp_path, model, text):
    name = write(tmp_path, mine=text + FACTORY, factor="FACTOR = 1\n")
    assert seen(name, model) == 1
    (tmp_path / "factor.py").unlink()
    with pytest.raises(UserError, match=r"mine\.py, line \d: .*No module named 'factor'"):
        seen(name, model)


def test_an_import_that_no_text_tells_is_refused(tmp_path, model):
    hidden = "import importlib\n\n\ndef value():\n    return importlib.import_module('fac' + 'tor').FACTOR\n"
    name = write(tmp_path, mine=hidden + FACTORY, factor="FACTOR = 1\n")
    with pytest.raises(UserError, match=r"mine imports .*factor\.py while it runs.*import it at the top of mine\.py"):
        seen(name, model)


def test_an_edit_during_a_run_does_not_mix_with_it(tmp_path, model):
    name = write(tmp_path, mine=INSERTED + VALUE + FACTORY, factor="FACTOR = 1\n")
    with settled():
        before = source_digest(name)
        write(tmp_path, factor="FACTOR = 2\n")
        assert source_digest(name) == before and seen(name, model) == 1
    assert source_digest(name) != before and seen(name, model) == 2


PREPARES = """
import pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from factor import FACTOR
from other import prepare
from bdjax.types import Attack, Recipe


def mine(spec, config=None, *, profile="corrected"):
    return Attack(print, print, print, print, Recipe(), None, prepare=prepare)
"""


def test_what_is_prepared_is_kept_by_everything_that_prepares_it(tmp_path, tiny_spec, tiny_dataset):
    import jax

    prepare = "def prepare(key, dataset):\n    return {'x': 1}\n"
    name = write(tmp_path, mine=PREPARES, factor="FACTOR = 1\n", other=prepare)

    def place():
        return assets.place(factory("attack", name, {})(tiny_spec, None, profile="corrected"), tiny_dataset, jax.random.key(0))

    before = place()
    assert place() == before
    write(tmp_path, factor="FACTOR = 2\n")
    middle = place()
    write(tmp_path, other=prepare.replace("1", "2"))
    assert len({before, middle, place()}) == 3


def test_files_of_a_users_own_can_be_loaded_many_times(tmp_path, model):
    name = write(tmp_path, mine=INSERTED + VALUE + FACTORY, factor="FACTOR = 1\n")
    assert load._load("defense", f"{tmp_path}/mine.py") is load._load("defense", f"{tmp_path}/mine.py")
    assert {seen(name, model) for _ in range(3)} == {1}
