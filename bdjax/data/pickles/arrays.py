"""Read a pickle of numbers, texts, lists, dictionaries and NumPy arrays, and nothing else.

The names that such a pickle may ask for are bound to stand-ins, which copy bytes
(:mod:`bdjax.data.pickles.numpy_stand_ins`); any other name is refused before anything of it is imported, so that nothing in a
file is run.
"""

import io
import pickle
from typing import Any

from bdjax.data.pickles.numpy_stand_ins import STAND_INS, Array
from bdjax.errors import UserError


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise UserError(f"the Python object {module}.{name}: refused, nothing of it was run") from None


def unpickled(data: bytes) -> Any:
    """Return the object in a pickle of any protocol; texts of Python 2 come as bytes, arrays as ``numpy.ndarray``.

    Raises:
      UserError: it asks for anything beyond numbers, texts, containers and NumPy arrays of numbers, or is no whole pickle.
    """
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="bytes").load())
    except UserError as error:
        raise UserError(f"it holds {error}; only numbers, texts and NumPy arrays are read") from None
    except Exception as error:  # whatever a damaged file makes the reader do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"it is truncated, damaged or no pickle ({reason})") from None


def _plain(value: Any) -> Any:
    """Arrays for their stand-ins, at the top and in a dictionary."""
    if isinstance(value, dict):
        return {key: item.value if isinstance(item, Array) else item for key, item in value.items()}
    return value.value if isinstance(value, Array) else value
