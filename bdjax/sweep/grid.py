"""A declarative grid: what to run, as plain values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bdjax.errors import choose

AXES = ("dataset", "model", "attack", "defense", "poison_ratio", "spc", "seeds")  # one value or several each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of its axes: data set, model, attack, defense, poison ratio, clean samples per class and seed.

    Each axis takes one value or several: ``Grid(attack="badnets", poison_ratio=(0, 0.1))``. A network, an attack or a defense is
    a name of its table or ``path/to/file.py:factory``. The names are those of the command line's flags.
    """

    dataset: tuple[str, ...] = ("digits",)
    """Data sets: names, see `bdjax ls datasets`, or folders with your own images."""
    model: tuple[str, ...] = ("cnn",)
    """Models, see `bdjax ls models`, or path/to/file.py:factory."""
    attack: tuple[str, ...] = ("badnets",)
    """Attacks, see `bdjax ls attacks`, or path/to/file.py:factory."""
    defense: tuple[str, ...] = ("ft", "fp", "clp")
    """Defenses, see `bdjax ls defenses`, or path/to/file.py:factory; "none" only trains."""
    poison_ratio: tuple[float, ...] = (0.0, 0.1)
    """Shares of all training rows, in [0, 1]; 0 is a model that was never attacked."""
    spc: tuple[int, ...] = (10,)
    """Clean samples per class the defender holds."""
    seeds: tuple[int, ...] = (0,)
    """Seeds by name, e.g. 0 1 2 3."""
    profile: str = "corrected"
    """corrected (the method as its paper describes it) or reference (as the published code behaves)."""
    width: int | None = None
    """Channels of the model's first stage; default: the model's own."""
    depth: int | None = None
    """At most so many blocks per stage of the model; default: the whole network."""
    precision: str = "float32"
    """float32, or bfloat16 for activations and convolutions (parameters, statistics and losses stay float32)."""
    epochs: int | None = None
    """Epochs of the attack's training; default: the attack's recipe."""
    batch: int | None = None
    """Batch size of the attack's training; default: the attack's recipe."""
    train_images: int | None = None
    """Size of a reduced training set, balanced by class and the same for every seed; default: all images."""
    test_images: int | None = None
    """Size of a reduced test set, likewise; default: all images."""
    target: int = 0
    """Target class of the attack."""
    attack_config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Static settings of attacks, {attack: {field: value}}."""
    defense_config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Static settings of defenses, {defense: {field: value}}."""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the training recipe of all attacks, {field: value}."""
    attack_recipe: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Fields of the recipe of one attack, {attack: {field: value}}; they win over ``recipe``, ``epochs`` and ``batch``."""
    hyper: Mapping[str, Mapping[str, Sequence[Any]]] = dataclasses.field(default_factory=dict)
    """Traced hyper-parameters as a population axis, {defense: {leaf: values}}."""
    root: int = 0
    """Root of all random draws."""
    imported: str | None = None
    """Folder that `bdjax import-torch` wrote, whose networks are defended; default: networks are trained."""
    about: str = ""
    """What to know about the number of experiments; `bdjax plan` says it."""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            dataset: str | Sequence[str] = ...,
            model: str | Sequence[str] = ...,
            attack: str | Sequence[str] = ...,
            defense: str | Sequence[str] = ...,
            poison_ratio: float | Sequence[float] = ...,
            spc: int | Sequence[int] = ...,
            seeds: int | Sequence[int] = ...,
            profile: str = ...,
            width: int | None = ...,
            depth: int | None = ...,
            precision: str = ...,
            epochs: int | None = ...,
            batch: int | None = ...,
            train_images: int | None = ...,
            test_images: int | None = ...,
            target: int = ...,
            attack_config: Mapping[str, Mapping[str, Any]] = ...,
            defense_config: Mapping[str, Mapping[str, Any]] = ...,
            recipe: Mapping[str, Any] = ...,
            attack_recipe: Mapping[str, Mapping[str, Any]] = ...,
            hyper: Mapping[str, Mapping[str, Sequence[Any]]] = ...,
            root: int = ...,
            imported: str | None = ...,
            about: str = ...,
        ) -> None: ...

    else:

        def __new__(cls, *_: Any, **given: Any) -> "Grid":
            """Refuse a field that does not exist, with the nearest one."""
            fields = [field.name for field in dataclasses.fields(cls)]
            for name in given:
                choose("field of Grid", name, fields)
            return super().__new__(cls)

    def __post_init__(self) -> None:
        """Make every axis a tuple; what is in it is checked when the grid is used."""
        for axis in AXES:
            values = getattr(self, axis)
            object.__setattr__(self, axis, (values,) if isinstance(values, (str, int, float)) else tuple(values))
