"""What exists, and the data sets that are prepared: parse, call, print."""

import json as encoding
from typing import Literal

from bdjax.errors import choose


def ls(what: Literal["attacks", "defenses", "models", "datasets"], /, *, json: bool = False) -> int:
    """List what exists, with the papers.

    Args:
      what: kind of thing.
      json: as JSON.
    """
    from bdjax.sweep.listing import columns, listing

    entries = listing(what)
    print(encoding.dumps(entries, indent=2) if json else columns(entries))
    return 0


def data(
    action: Literal["prepare"],
    name: str,
    /,
    *,
    data_dir: str | None = None,
    via: Literal["archive", "tfds"] = "archive",
    download: bool = False,
) -> int:
    """Check the archives of a data set and write its cached arrays: bdjax data prepare NAME.

    Args:
      action: what to do.
      name: data set, or the path of a folder with one.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      via: read the archives directly or through tensorflow-datasets.
      download: fetch the official archives first, where they are missing.
    """
    from bdjax.data import prepare

    choose("action", action, ("prepare",))
    print(f"{name} is prepared in {prepare(name, data_dir, via=via, download=download)}")
    return 0
