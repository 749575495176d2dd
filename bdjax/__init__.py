"""Backdoor attacks and defenses on image classifiers, run as populations of members on one accelerator.

Six lines train, attack, defend and show what came of it:

>>> import bdjax, tempfile
>>> grid = bdjax.Grid(dataset="digits", model="cnn", attack="badnets", defense="clp", poison_ratio=0.1, width=4, epochs=1,
...                   train_images=100, test_images=50)
>>> frame = bdjax.run(grid, tempfile.mkdtemp(), stream=open("/dev/null", "w"))
>>> sorted(frame["defense"])
['clp', 'none']

============ ==================================================================================================
Grid         what to run: every combination of its axes
run          run what of a grid has no record yet; returns the records as a polars.DataFrame; resumes
plan         what a grid costs, before anything runs
read         the records of a folder, as run returns them
report       tables, figures and an HTML page from the records of a folder
cite         BibTeX of the papers behind a folder
load_data    a data set, as host arrays
ATTACKS, DEFENSES, MODELS, DATASETS   the tables of names
============ ==================================================================================================

Each is imported when it is first used, so that ``import bdjax`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdjax.attacks import ATTACKS as ATTACKS
    from bdjax.data import DATASETS as DATASETS
    from bdjax.data import load as load_data
    from bdjax.defenses import DEFENSES as DEFENSES
    from bdjax.models import MODELS as MODELS
    from bdjax.reporting.html import build as report
    from bdjax.results.cite import cite_folder as cite
    from bdjax.store.records import read as read
    from bdjax.sweep.estimate import overview as plan
    from bdjax.sweep.grid import Grid as Grid
    from bdjax.sweep.run import run as run

__version__ = "0.1.0"

_WHERE = {
    "ATTACKS": ("attacks", "ATTACKS"),
    "DATASETS": ("data", "DATASETS"),
    "DEFENSES": ("defenses", "DEFENSES"),
    "Grid": ("sweep.grid", "Grid"),
    "MODELS": ("models", "MODELS"),
    "cite": ("results.cite", "cite_folder"),
    "load_data": ("data", "load"),
    "plan": ("sweep.estimate", "overview"),
    "read": ("store.records", "read"),
    "report": ("reporting.html", "build"),
    "run": ("sweep.run", "run"),
}

__all__ = [
    "ATTACKS", "DATASETS", "DEFENSES", "MODELS", "Grid", "__version__", "cite", "load_data", "plan", "read", "report", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bdjax' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _WHERE[name]
    found = getattr(importlib.import_module(f"bdjax.{module}"), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
