"""The reference of the Python functions: a page per room of the package, in which mkdocstrings puts what the docstrings say."""

from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "bdjax"
DOOR = """# Python API

What a program needs is in `bdjax` itself; each name is imported when it is first used. The rooms below are for methods, networks
and analyses of your own: [CONTRIBUTING](../../../CONTRIBUTING.md#the-rooms) says which imports which. Shapes of arrays stand in
jaxtyping's notation, `Float[Array, "b h w c"]`: members m, rows n, batch b, image h w c, classes k, channels d.

The tables `bdjax.ATTACKS`, `bdjax.DEFENSES`, `bdjax.MODELS` and `bdjax.DATASETS` map names to factories:
[all of them](../../methods/index.md).

"""
NAMES = (
    "bdjax.sweep.grid.Grid",
    "bdjax.sweep.run.run",
    "bdjax.sweep.estimate.overview",
    "bdjax.store.records.read",
    "bdjax.reporting.html.build",
    "bdjax.results.cite.cite_folder",
    "bdjax.data.loading.load",
)
CALLED = dict(zip(NAMES, ("Grid", "run", "plan", "read", "report", "cite", "load_data"), strict=True))
ROOMS = {
    "vocabulary": ("types", "errors", "keys", "tree", "configure", "metrics"),
    "nn": ("nn",),
    "data": ("data",),
    "models": ("models",),
    "train": ("train",),
    "attacks": ("attacks.selection", "attacks.slots", "attacks.batch_augment", "attacks.user_files"),
    "defenses": ("defenses.batches", "defenses.tuning", "defenses.channels"),
    "population": ("population",),
    "store": (
        "store.records",
        "store.rows",
        "store.location",
        "store.leases",
        "store.checkpoints",
        "store.run_log",
        "store.hashing",
    ),
    "plugins": ("plugins",),
    "sweep": (
        "sweep.grid",
        "sweep.run",
        "sweep.check",
        "sweep.estimate",
        "sweep.first_tuning",
        "sweep.status",
        "sweep.trackers",
        "sweep.ray",
    ),
    "results": ("results",),
    "interop": ("interop",),
}


def pages() -> dict[str, str]:
    """The pages, {path below docs/: Markdown}."""
    door = DOOR + "\n".join(_named(name, f"bdjax.{CALLED[name]}") for name in NAMES)
    return {"reference/api/index.md": door, **{f"reference/api/{room}.md": _room(room) for room in ROOMS}}


def navigation() -> list[Any]:
    """The entries of the menu."""
    return ["reference/api/index.md", *({_title(room): f"reference/api/{room}.md"} for room in ROOMS)]


def _title(room: str) -> str:
    return "Shared vocabulary" if room == "vocabulary" else f"bdjax.{room}"


def _room(room: str) -> str:
    names = [name for start in ROOMS[room] for name in _modules(start)]
    return "\n".join([f"# {_title(room)}\n", *(_named(name, name) for name in names)])


def _named(name: str, title: str) -> str:
    return f"## {title}\n\n::: {name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"


def _modules(start: str) -> list[str]:
    """A module, or the modules of a room that say something; private ones are left out."""
    place = PACKAGE.joinpath(*start.split("."))
    if not place.is_dir():
        return [f"bdjax.{start}"]
    found = sorted(path for path in place.rglob("*.py") if not path.name.startswith("_"))
    return [f"bdjax.{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}" for path in found]
