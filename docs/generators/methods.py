"""A page for each attack, defense, network and data set, from docstrings and the configurations that their factories resolve."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bdjax.attacks.table import ATTACKS
from bdjax.cli.entry import NEEDS
from bdjax.data.table import DATASETS
from bdjax.defenses.table import DEFENSES
from bdjax.models.table import MODELS
from bdjax.results import papers
from bdjax.sweep.details import COMMON, details
from bdjax.types import PROFILES
from docs.generators import costs
from docs.generators.markdown import escaped, fenced, table, value, without_roles

TABLES: dict[str, Mapping[str, Any]] = {"attacks": ATTACKS, "defenses": DEFENSES, "models": MODELS, "datasets": DATASETS}
ONE = {"attacks": "attack", "defenses": "defense", "models": "model", "datasets": "dataset"}
TESTS = Path(__file__).parents[2] / "tests"
SHARED = {"attacks": "tests/contract/test_attacks.py", "defenses": "tests/contract/test_defenses.py"}
SHARED |= {"models": "tests/models/test_models.py", "datasets": "tests/data/test_real_archives.py"}

OWN = {"a defense": "defense", "an attack": "attack", "a network": "model", "a data set": "data"}

Entry = dict[str, Any]


def pages() -> dict[str, str]:
    """The pages, {path below docs/: Markdown}."""
    entries = {kind: {name: _entry(kind, name) for name in names} for kind, names in TABLES.items()}
    made = {"methods/index.md": _index(entries)}
    for kind, found in entries.items():
        made |= {f"methods/{kind}/{name}.md": _page(kind, name, entry) for name, entry in found.items()}
    return made


def navigation() -> list[Any]:
    """The entries of the menu."""
    titles = {"attacks": "Attacks", "defenses": "Defenses", "models": "Networks", "datasets": "Data sets"}
    listed = [{titles[kind]: [{name: f"methods/{kind}/{name}.md"} for name in names]} for kind, names in TABLES.items()]
    return ["methods/index.md", *listed]


def _entry(kind: str, name: str) -> Entry:
    keys = papers.PAPERS[ONE[kind]][name]
    return {**details(kind, name), "bibtex": "\n\n".join(papers.entries()[key] for key in keys)}


def _index(entries: dict[str, dict[str, Entry]]) -> str:
    def line(kind: str, name: str, entry: Entry) -> list[str]:
        return [f"[`{name}`]({kind}/{name}.md)", escaped(entry["does"]), escaped(entry["paper"])]

    parts = [
        "# Methods",
        "Every attack and defense has two profiles: `corrected`, the default, does what its paper says, with the settings of the "
        "survey by Dunnett et al. (arXiv 2411.11200); `reference` does what the published code does, quirks included. The page "
        "of a method names every difference, its settings with their defaults in both profiles, and what it needs. In a "
        "terminal, `bdjax ls defenses` lists them and `bdjax ls defenses fp` shows one.",
    ]
    for kind, title in (("attacks", "Attacks"), ("defenses", "Defenses"), ("models", "Networks")):
        rows = [line(kind, name, entry) for name, entry in entries[kind].items()]
        parts += [f"## {title}", table(["name", "what it does", "paper"], rows)]
    rows = [
        [
            f"[`{name}`](datasets/{name}.md)",
            *(_number(entry[fact]) for fact in ("image", "classes", "train_images", "test_images")),
        ]
        for name, entry in entries["datasets"].items()
    ]
    parts += ["## Data sets", table(["name", "image", "classes", "training images", "test images"], rows)]
    own = [f"[{what}](../how-to/own-{file}.md)" for what, file in OWN.items()]
    parts.append(f"Yours run beside these, under the path of their file or folder: {', '.join(own)}.")
    return "\n\n".join(parts)


def _number(fact: int | str) -> str:
    return f"{fact:,}" if isinstance(fact, int) else fact


def _page(kind: str, name: str, entry: Entry) -> str:
    parts = [f"# {name}", *_said(kind, name, entry)]
    parts += {"attacks": _attack, "defenses": _defense, "models": _model, "datasets": _dataset}[kind](name, entry)
    if entry.get("differs"):
        parts += ["## What differs from the paper and the published code", escaped(entry["differs"])]
    parts += ["## Where it is checked", _checked(kind, name)]
    if entry["bibtex"]:
        parts += ["## To cite", fenced("bibtex", entry["bibtex"])]
    return "\n\n".join(parts)


def _said(kind: str, name: str, entry: Entry) -> list[str]:
    """The paragraphs of a docstring up to its arguments, and its paper."""
    if kind == "datasets":
        return [escaped(without_roles(papers.in_words("dataset", name)))]
    text = inspect.getdoc(TABLES[kind][name]) or ""
    body = text.partition("\nArgs:")[0].partition("\nSource:")[0].strip().split("\n\n")
    return [*(escaped(" ".join(paragraph.split())) for paragraph in body), f"**Paper.** {escaped(entry['paper'])}"]


def _defense(name: str, entry: Entry) -> list[str]:
    needs = ", ".join(NEEDS[need] for need in entry["needs"]).replace("--spc", "`--spc`") or "no data: the network alone"
    held_back = " A part of the clean images is held back for validation." if entry["validation"] else ""
    return [
        fenced("console", f"bdjax run --attack badnets --defense {name} --spc 10 --out {name}"),
        f"**Needs** {needs}.{held_back}",
        f"**Costs.** {costs.of_defense(name)}",
        *_settings(f"Settings: `--config {name}.NAME=VALUE`", entry["settings"]),
        *_settings(f"Hyper-parameters, each a population axis: `--hyper {name}.NAME=V1,V2`", entry["hyper"]),
        *_elsewhere(entry),
    ]


def _attack(name: str, entry: Entry) -> list[str]:
    return [
        fenced("console", f"bdjax run --attack {name} --dataset cifar10 --data-dir DIR --defense ft fp --spc 10 --out {name}"),
        f"**Poisons** {entry['poisons']}. **Needs** {', '.join(entry['needs']) or 'nothing else'}.",
        f"**Costs.** {costs.of_attack(name)}",
        *_settings(f"Settings: `--config {name}.NAME=VALUE`", entry["settings"]),
        *_settings(f"Training: `--config {name}.recipe.NAME=VALUE`, or `--epochs` and `--batch`", entry["training"]),
        *_elsewhere(entry),
    ]


def _model(name: str, entry: Entry) -> list[str]:
    size = f"{entry['parameters']:,} parameters, {entry['convolutions']} convolutions and {entry['norms']} norms"
    rows = [[f"`--{row['name']}`", row["comment"], str(row["default"] or "all")] for row in entry["settings"]]
    return [
        fenced("console", f"bdjax run --model {name} --dataset cifar10 --data-dir DIR --out {name}"),
        f"**Size** for {COMMON} and at its own width: {size}, in {len(entry['stages'])} stages.",
        table(["flag", "what it is", "default"], rows),
    ]


def _dataset(name: str, entry: Entry) -> list[str]:
    names, crops = entry["class_names"], []
    crops += ["horizontal flips"] if entry["flip"] else []
    crops += [f"crops after padding by {entry['pad']} pixels"] if entry["pad"] else []
    rows = [
        ["images", f"{entry['image']}; {entry['train_images']:,} for training, {entry['test_images']:,} for tests"],
        ["classes", f"{entry['classes']}" + (f": {', '.join(names[:20])}{' …' * (len(names) > 20)}" if names else "")],
        ["augmentation", ", ".join(crops) or "none"],
        *(["archives", f"{one['name']}: {', '.join(map(value, one['archives']))}" + ", with `--download`" * one["download"]]
          for one in entry["editions"] if one["archives"]),
        *(["unpacked", escaped(needs)] for needs in entry["unpacked"]),
    ]  # fmt: skip
    command = f"bdjax data prepare {name}" + (" --data-dir DIR" if any(one["archives"] for one in entry["editions"]) else "")
    return [table(["", name], rows), fenced("console", command)]


def _settings(title: str, rows: list[Entry]) -> list[str]:
    """A table of settings; one column where the profiles agree in all of them."""
    if not rows:
        return []
    shown = [profile for profile in PROFILES if profile in rows[0]]
    if all(len({repr(row[profile]) for profile in shown}) == 1 for row in rows):
        titles, shown = ["both profiles"], shown[:1]
    else:
        titles = [f"`{profile}`" for profile in shown]
    body = [[f"`{row['name']}`", *(value(row[profile]) for profile in shown), escaped(row["comment"])] for row in rows]
    return [f"## {title}", table(["name", *titles, "what it is"], body)]


def _elsewhere(entry: Entry) -> list[str]:
    rows = [
        [dataset, profile, ", ".join(f"`{name}` {value(found)}" for name, found in values.items())]
        for dataset, profiles in entry["elsewhere"].items()
        for profile, values in profiles.items()
    ]
    said = f"These are the defaults on {COMMON}. On other data sets:"
    return [said, table(["data set", "profile", "defaults"], rows)] if rows else []


def _checked(kind: str, name: str) -> str:
    """The test files that bear the name of a method, and the one that every method of its kind passes."""
    room = {"datasets": "data"}.get(kind, kind)
    own = sorted(str(path.relative_to(TESTS.parent)) for path in (TESTS / room).glob(f"test_{name}*.py"))
    own = [path for path in own if _belongs(Path(path).stem.removeprefix("test_"), name, TABLES[kind])]
    return "\n".join(f"- `{path}`" for path in [*own, SHARED[kind]]) + "\n"


def _belongs(stem: str, name: str, names: Mapping[str, Callable[..., Any]]) -> bool:
    """Whether a test file is about this method and not about one whose name begins alike, as ft and ft_sam do."""
    return max((other for other in names if stem == other or stem.startswith(f"{other}_")), key=len, default="") == name
