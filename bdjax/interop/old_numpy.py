"""Pickles whose NumPy arrays NumPy 1 can read too: the published code runs with it.

NumPy 2 calls the functions that a pickled array names ``numpy._core.…``; NumPy 1 knows them as ``numpy.core.…``.
"""

import io
import pickle
import pickletools
import types
from typing import Any

PROTOCOL = 2  # with it a pickle names functions in lines of text


class Pickler(pickle.Pickler):
    """A pickler that writes the old names.

    Args:
      file: where to write.
      protocol: :data:`PROTOCOL`.
    """

    def __init__(self, file: Any, protocol: int = PROTOCOL):
        assert protocol == PROTOCOL
        self._file, self._written = file, io.BytesIO()
        super().__init__(self._written, protocol)

    def dump(self, value: Any) -> None:
        """Write a value."""
        super().dump(value)
        self._file.write(renamed(self._written.getvalue()))


def renamed(pickled: bytes) -> bytes:
    """Return a pickle of protocol 2 with the old names of NumPy's functions."""
    parts, done = [], 0
    for opcode, argument, place in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and str(argument).startswith("numpy._core."):
            assert place is not None
            line = pickled.index(b"numpy._core.", place)
            parts += [pickled[done:line], b"numpy.core."]
            done = line + len(b"numpy._core.")
    return b"".join([*parts, pickled[done:]])


PICKLE: Any = types.SimpleNamespace(__name__="pickle", Pickler=Pickler)  # in the place of the module, for torch.save
