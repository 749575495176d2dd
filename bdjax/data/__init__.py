"""Data sets: a table of sources, how they become cached uint8 arrays, and what training does with them.

A new data set is one file with a ``Source`` (see ``cifar10.py``) and one line in ``DATASETS``; a user's own is a folder
(``folder.py``), and its path stands wherever a name does.
"""

from bdjax.data.array_folder import write_arrays
from bdjax.data.arrays import from_arrays
from bdjax.data.loading import known, load, prepare, sizes, spec
from bdjax.data.source import Edition, Source
from bdjax.data.table import DATASETS

__all__ = ["DATASETS", "Edition", "Source", "from_arrays", "known", "load", "prepare", "sizes", "spec", "write_arrays"]
