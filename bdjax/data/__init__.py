"""Data sets: a table of sources, how they become cached uint8 arrays, and what training does with them.

A new data set is one file with a ``Source`` (see ``cifar10.py``) and one line in ``DATASETS``.
"""

from bdjax.data.arrays import from_arrays
from bdjax.data.load import load, prepare, sizes, spec
from bdjax.data.source import Source
from bdjax.data.table import DATASETS

__all__ = ["DATASETS", "Source", "from_arrays", "load", "prepare", "sizes", "spec"]
