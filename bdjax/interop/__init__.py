"""The door to other software: BackdoorBench checkpoints and our variables in both directions, and poisoned data as files.

Importing this package needs no PyTorch, and neither does reading what an import left behind.
"""

from bdjax.interop.checkpoint import Checkpoint
from bdjax.interop.imports import export_torch, import_torch, model_of
from bdjax.interop.recognition import Recognised, recognise
from bdjax.interop.state import Imported, from_state, to_state
from bdjax.interop.torch import read, write
from bdjax.store.import_folder import File, Import, load, save
from bdjax.types import Triggered

__all__ = [
    "Checkpoint",
    "File",
    "Import",
    "Imported",
    "Recognised",
    "Triggered",
    "export_torch",
    "from_state",
    "import_torch",
    "load",
    "model_of",
    "read",
    "recognise",
    "save",
    "to_state",
    "write",
]
