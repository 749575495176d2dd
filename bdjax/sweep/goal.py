"""What an attack wants triggered images to be called, in words and as a record has it."""

from collections.abc import Mapping
from typing import Any

from bdjax.types import Attack, DataSpec

ALL_TO_ALL = "all_to_all"


def rule(config: Any) -> str | None:
    """The label rule of an attack's configuration: "all_to_one", "all_to_all", or None where the configuration has none.

    Args:
      config: a NamedTuple, or the fields of one by name as a record holds them.
    """
    fields = config if isinstance(config, Mapping) else config._asdict() if hasattr(config, "_asdict") else {}
    if fields.get("labels") is not None:
        return str(fields["labels"])
    return "all_to_one" if fields.get("target") is not None else None


def target(attack: Attack, given: int) -> int | None:
    """The class that triggered images are to be called; None where there is more than one.

    Args:
      attack: built.
      given: the target of its cell, for attacks whose configuration names none.
    """
    found = getattr(attack.config, "target", given)
    return None if found is None or rule(attack.config) == ALL_TO_ALL else int(found)


def class_name(spec: DataSpec, label: int | None) -> str | None:
    """The name of a class; None where it has none."""
    return spec.class_names[label] if label is not None and 0 <= label < len(spec.class_names) else None


def in_words(attack: Attack, given: int, spec: DataSpec) -> str:
    """The goal of an attack in words: "target 2 (class 'stop sign')", or its label rule."""
    label = target(attack, given)
    return f"labels {rule(attack.config) or 'several'}" if label is None else f"target {named(label, class_name(spec, label))}"


def named(label: int, name: str | None) -> str:
    """A class with its name, where that says more than its number: "2 (class 'stop sign')"."""
    return str(label) if name is None or name == str(label) else f"{label} (class {name!r})"
