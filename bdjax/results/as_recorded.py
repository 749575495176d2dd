"""Methods and networks of a record, from the very files that it was made with."""

from collections.abc import Mapping
from typing import Any

from bdjax.errors import UserError
from bdjax.models.table import MODELS, reduced
from bdjax.plugins.load import factory, source_digest
from bdjax.types import DataSpec, Model


def method(kind: str, settings: Mapping[str, Any], table: Mapping[str, Any]) -> Any:
    """The factory of a method or network of a record, from the very file that it was run from.

    Args:
      kind: of :data:`bdjax.plugins.made.KINDS`.
      settings: the part of a record's configuration that describes it.
      table: built-in factories.

    Raises:
      UserError: the file is not here, or was edited since.
    """
    make = factory(kind, settings["name"], table)
    if source_digest(settings["name"]) != settings.get("source"):
        raise edited(settings, source_digest(settings["name"]))
    return make


def edited(settings: Mapping[str, Any], now: str | None) -> UserError:
    """The error for a user's file that is another one today than when the record was made.

    Args:
      settings: the part of the record's configuration that describes the method or network.
      now: the hash of the file today.
    """
    there, here = (str(digest or "none")[:8] for digest in (settings.get("source"), now))
    return UserError(
        f"{settings['name']} was edited since the record was made; the network, its defense or the trigger would be another. The "
        f"hash of the file and of what it imports was {there}, and is {here}: put the file back as it was, or run it again, "
        "which makes records of its own"
    )


def network(settings: Mapping[str, Any], facts: DataSpec) -> Model:
    """The network of a record for a data set, as wide and as deep as it was.

    Args:
      settings: the part of the record's configuration that describes it.
      facts: of the data set.

    Raises:
      UserError: its file is not here, or was edited since.
    """
    make = method("model", settings, MODELS)
    return reduced(make, facts, settings["name"], width=settings["width"], depth=settings["depth"])
