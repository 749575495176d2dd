"""One attack, defense, network or data set in full, as text: what :func:`bdjax.sweep.details.details` found."""

import json
from collections.abc import Mapping
from typing import Any

from bdjax.cli.printing import facts, printed, table, titled
from bdjax.sweep.details import COMMON

NEEDS = {"clean": "clean images (--spc)", "triggered": "the true trigger on them", "test_accuracy": "accuracy on the test set"}
SHOWN = 20  # class names at most
Entry = Mapping[str, Any]


def show(entry: Entry) -> None:
    """Print an entry: what is said of it, then its settings, training and hyper-parameters as tables."""
    name = entry["name"]
    said = {"defense": _defense, "attack": _attack, "model": _model, "data set": _dataset}[entry["kind"]](entry)
    lead = {entry["kind"]: name, "does": entry.get("does", ""), "paper": entry.get("paper", "")}
    missing = {f"no {profile}": reason for profile, reason in entry.get("missing", {}).items()}
    parts: list[Any] = [facts({**lead, **said, **missing, "differs": entry.get("differs", "")})]
    titles = {
        "settings": "Settings: --NAME VALUE" if entry["kind"] == "model" else f"Settings: --config {name}.NAME=VALUE",
        "training": f"Training: --config {name}.recipe.NAME=VALUE, or --epochs and --batch",
        "hyper": f"Hyper-parameters, each a population axis: --hyper {name}.NAME=V1,V2",
    }
    for field, title in titles.items():
        if entry.get(field):
            parts += titled(title, table([_row(row) for row in entry[field]], last="comment"))
    if entry.get("elsewhere"):
        parts += titled(f"These are the defaults on {COMMON}; on other data sets:", table(_elsewhere(entry)))
    printed(*parts)


def _row(row: Entry) -> dict[str, str]:
    return {name: value if name in ("name", "comment") else _value(value) for name, value in row.items()}


def _value(value: Any) -> str:
    """A value as flags take it."""
    if value is None or isinstance(value, str):
        return str(value)
    return json.dumps(value)


def _elsewhere(entry: Entry) -> list[dict[str, str]]:
    return [
        {"data set": dataset, "profile": profile, "defaults": ", ".join(f"{name}={_value(v)}" for name, v in values.items())}
        for dataset, profiles in entry["elsewhere"].items()
        for profile, values in profiles.items()
    ]


def _defense(entry: Entry) -> dict[str, str]:
    held_back = "; a part of the clean images is held back for validation" if entry["validation"] else ""
    return {"needs": (", ".join(NEEDS[need] for need in entry["needs"]) or "nothing") + held_back}


def _attack(entry: Entry) -> dict[str, str]:
    return {"poisons": entry["poisons"], "needs": ", ".join(entry["needs"]) or "nothing"}


def _model(entry: Entry) -> dict[str, str]:
    counts = f"{entry['parameters']:,} parameters, {entry['convolutions']} convolutions, {entry['norms']} norms"
    return {"size": f"{counts}, {len(entry['stages'])} stages, for {COMMON} and at its own width"}


def _dataset(entry: Entry) -> dict[str, str]:
    names = entry["class_names"]
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    counts = [f"{entry[f'{split}_images']:,} {split}" for split in ("train", "test") if f"{split}_images" in entry]
    crops = [*(["horizontal flips"] if entry["flip"] else []), *([f"crops by {entry['pad']} pixels"] if entry["pad"] else [])]
    archives = [
        f"{', '.join(one['archives'])} ({one['name']}{', with --download' if one['download'] else ''})"
        for one in entry.get("editions", ())
        if one["archives"]
    ]
    return {
        "images": ", ".join([entry["image"], *counts]),
        "classes": f"{entry['classes']}: {', '.join(names[:SHOWN])}{more}" if names else str(entry["classes"]),
        "mean": _value(entry["mean"]),
        "std": _value(entry["std"]),
        "augmentation": ", ".join(crops) or "none",
        "needs": "; or ".join([*archives, *(f"unpacked, {needs}" for needs in entry.get("unpacked", ()))]) or "nothing",
    }
