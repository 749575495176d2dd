"""The error for a folder of results that is not there, or that holds something else."""

from bdjax.errors import UserError, folder_like
from bdjax.store import location
from bdjax.store.location import Location


def no_folder(folder: Location, what: str, remedy: str) -> UserError:
    """The error, with the folder of the nearest name where there is one.

    Args:
      folder: what was named.
      what: what it should be a folder of.
      remedy: how such a folder comes about.
    """
    if location.exists(folder):
        return UserError(f"{folder} is no folder of {what}; {remedy}")
    near = folder_like(str(folder))
    hint = f" Did you mean {near!r}?" if near else ""
    return UserError(f"{folder} does not exist, so it is no folder of {what}.{hint} {remedy[0].upper()}{remedy[1:]}")
