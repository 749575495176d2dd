"""A network by name: of the table, or of a file of the user's own."""

from bdjax.models.table import MODELS, reduced
from bdjax.plugins.load import factory
from bdjax.types import DataSpec, Model


def network(name: str, spec: DataSpec, *, width: int | None = None, depth: int | None = None) -> Model:
    """Build a network.

    Args:
      name: of the table, or ``path/to/file.py:factory``.
      spec: data set facts.
      width: channels of its first stage; None = its own.
      depth: at most so many blocks per stage; None = all.

    Raises:
      UserError: no such name, file or factory, one that makes no network, or a reduction the network does not have.
    """
    return reduced(factory("model", name, MODELS), spec, name, width=width, depth=depth)
