"""What exists, one of it in full, and the data sets that are prepared: parse, call, print."""

import json as encoding
from typing import Annotated, Literal

from bdjax.cli.flags import DataDir, flag
from bdjax.errors import choose


def ls(
    what: Literal["attacks", "defenses", "models", "datasets"],
    name: Annotated[str | None, flag("[NAME]", "all of them, with their papers")] = None,
    /,
    *,
    json: bool = False,
) -> int:
    """List what exists, or show one of it: settings and hyper-parameters with their defaults, what it needs, its paper.

    Args:
      what: kind of thing.
      name: one of them, or path/to/file.py:factory.
      json: as JSON.
    """
    from bdjax.cli.entry import show
    from bdjax.cli.printing import printed, table
    from bdjax.results.papers import in_words
    from bdjax.sweep.details import details
    from bdjax.sweep.listing import listing

    if name is None:
        entries = listing(what)
        if json:
            print(encoding.dumps(entries, indent=2))
        else:
            printed(table(entries, last="paper"))
        return 0
    entry = details(what, name)
    if what == "datasets":
        entry["paper"] = in_words("dataset", name)
    if json:
        print(encoding.dumps(entry, indent=2))
    else:
        show(entry)
    return 0


def data(
    action: Literal["prepare"],
    name: Annotated[str, flag("NAME")],
    /,
    *,
    data_dir: DataDir = None,
    via: Literal["archive", "tfds"] = "archive",
    download: bool = False,
) -> int:
    """Check the archives of a data set and write its cached arrays: bdjax data prepare NAME.

    Args:
      action: what to do.
      name: data set, or the path of a folder with one.
      data_dir: folder of the data archives.
      via: read the archives directly or through tensorflow-datasets.
      download: fetch the official archives first, where they are missing.
    """
    from bdjax.data import prepare

    choose("action", action, ("prepare",))
    print(f"{name} is prepared in {prepare(name, data_dir, via=via, download=download)}")
    return 0
