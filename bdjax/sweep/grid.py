"""A declarative grid: what to run, as plain values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of its axes. A method is a name of its table or ``path/to/file.py:factory``."""

    datasets: tuple[str, ...] = ("digits",)
    models: tuple[str, ...] = ("cnn",)
    attacks: tuple[str, ...] = ("badnets",)
    defenses: tuple[str, ...] = ("ft", "fp", "clp")
    poison_ratios: tuple[float, ...] = (0.0, 0.1)
    """Of all training rows, in [0, 1]; 0 is a member that was never attacked."""
    spc: tuple[int, ...] = (10,)
    """Clean samples per class a defender holds."""
    seeds: tuple[int, ...] = (0,)
    profile: str = "corrected"
    width: int | None = None
    """Channels of the model's first stage; None = the model's own."""
    depth: int | None = None
    """At most so many blocks per stage; None = the whole network."""
    precision: str = "float32"
    """Of activations and convolutions, see :data:`bdjax.models.PRECISIONS`."""
    epochs: int | None = None
    """Of the attack's training; None = the attack's recipe."""
    batch: int | None = None
    """Of the attack's training; None = the attack's recipe."""
    train_images: int | None = None
    test_images: int | None = None
    """Size of a reduced split, balanced by class and the same for every seed; None = all."""
    target: int = 0
    attack_config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    defense_config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Static overrides, {method: {field: value}}."""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the training recipe of all attacks, {field: value}."""
    attack_recipe: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Fields of the recipe of one attack, {attack: {field: value}}; they win over ``recipe``, ``epochs`` and ``batch``."""
    hyper: Mapping[str, Mapping[str, Sequence[Any]]] = dataclasses.field(default_factory=dict)
    """Traced hyper-parameters as a population axis, {defense: {leaf: values}}."""
    root: int = 0
    """Root of all random draws."""
    imported: str | None = None
    """Folder that `bdjax import-torch` wrote: its networks take the place of training."""
    about: str = ""
    """What to know about the number of experiments; `bdjax plan` says it."""
