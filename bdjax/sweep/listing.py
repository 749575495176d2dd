"""What exists: attacks, defenses, models and data sets, each with the paper it comes from."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from bdjax.errors import choose
from bdjax.types import DataSpec

KINDS = ("attacks", "defenses", "models", "datasets")


def listing(kind: str) -> list[dict[str, Any]]:
    """One entry per name: ``name``, ``paper`` and what the kind has to say.

    Args:
      kind: one of :data:`KINDS`.

    Raises:
      UserError: another kind.
    """
    choose("thing to list", kind, KINDS)
    return {"attacks": _attacks, "defenses": _defenses, "models": _models, "datasets": _datasets}[kind]()


def paper(function: Callable[..., Any]) -> str:
    """The ``Source:`` paragraph of a factory's docstring as one line; empty if it has none."""
    text = inspect.getdoc(function) or ""
    found = re.search(r"^Source:\s*(.*?)(?=\n\s*\n|\n[A-Z][a-z]+:|\Z)", text, re.S | re.M)
    return " ".join(found.group(1).split()) if found else ""


def _any_spec() -> DataSpec:
    from bdjax.data import spec

    return spec("cifar10")  # no network is too deep for its images


def _attacks() -> list[dict[str, Any]]:
    from bdjax.attacks.table import ATTACKS

    def entry(name: str) -> dict[str, Any]:
        attack = ATTACKS[name](_any_spec())
        where = "inside the batch" if attack.batch else "the training set"
        return {"name": name, "paper": paper(ATTACKS[name]), "poisons": where, "needs": ["preparation"] if attack.prepare else []}

    return [entry(name) for name in ATTACKS]


def _defenses() -> list[dict[str, Any]]:
    from bdjax.defenses.table import DEFENSES
    from bdjax.models import MODELS

    model = MODELS["cnn"](_any_spec(), width=4)

    def entry(name: str) -> dict[str, Any]:
        defense = DEFENSES[name](model)
        hyper = list(getattr(defense.hyper, "_fields", ()))
        return {"name": name, "paper": paper(DEFENSES[name]), "needs": sorted(defense.needs), "hyper": hyper}

    return [entry(name) for name in DEFENSES]


def _models() -> list[dict[str, Any]]:
    from bdjax.models import MODELS

    return [{"name": name, "paper": paper(make), "width": make(_any_spec()).width} for name, make in MODELS.items()]


def _datasets() -> list[dict[str, Any]]:
    from bdjax.data import DATASETS, spec

    def entry(name: str) -> dict[str, Any]:
        facts, source = spec(name), DATASETS[name]
        sizes = {f"{split}_images": sum(counts) for split, counts in source.counts.items()}
        return {
            "name": name,
            "image": "x".join(map(str, facts.image_shape)),
            "classes": facts.classes,
            **sizes,
            "needs": sorted(source.archives),
        }

    return [entry(name) for name in DATASETS]


def columns(entries: list[dict[str, Any]]) -> str:
    """Entries as aligned text, one line each, the paper last."""
    order = [name for name in entries[0] if name != "paper"] + (["paper"] if "paper" in entries[0] else [])
    cells = [order, *([_text(name, entry[name]) for name in order] for entry in entries)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(order))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or ("nothing" if name == "needs" else "-")
    return f"{value:,}" if isinstance(value, int) else str(value)
