"""The flags that several commands share, and how help shows a flag."""

import ast
import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from bdjax.errors import UserError
from bdjax.models import PRECISIONS
from bdjax.nn.convolution import LOWERINGS
from bdjax.population import LOOPS, STRATEGIES, Execution
from bdjax.results.learned import Learning
from bdjax.store.hashing import canonical
from bdjax.sweep.grid import Grid
from bdjax.sweep.trackers import PACKAGES
from bdjax.types import PROFILES

SETTINGS = ("attack_config", "defense_config", "recipe", "attack_recipe", "hyper", "about")  # no flags of their own
CONFIG = (
    'Static settings, e.g. fp.epochs=10; METHOD "recipe" is the training of the attack. Of path/to/file.py:factory the name of '
    "the factory is enough, here and in --hyper."
)
HYPER = "Hyper-parameters as population axes, e.g. ft.lr=0.01,0.001: every value is a member."


def flag(word: str, unset: str | None = None, text: str | None = None) -> Any:
    """How help shows a flag.

    Args:
      word: stands for its value.
      unset: what happens where the flag is not given and its default says nothing of it; None: the default is shown.
      text: what the flag is; None: as the docstring has it.
    """
    return tyro.conf.arg(metavar=word, help=text, help_behavior_hint=None if unset is None else f"(default: {unset})")


def choices(names: Sequence[str]) -> str:
    """The word for a value that is one of a few names."""
    return "{" + ",".join(names) + "}"


WORDS = {  # for text; numbers are INT and FLOAT
    **dict.fromkeys(("dataset", "model", "attack", "defense"), "NAME"),
    **dict.fromkeys(("imported", "results"), "DIR"),
    "profile": choices(PROFILES),
    "precision": choices(tuple(PRECISIONS)),
}
DataDir = Annotated[str | None, flag("DIR", "the environment's BDJAX_DATA_DIR")]
Results = Annotated[str, flag("DIR")]
ImportFolder = Annotated[str | None, flag("DIR", "the network was trained here")]
OwnData = Annotated[str | None, flag("NAME", "the record's")]
Profile = Annotated[str, flag(choices(PROFILES))]
Settings = Annotated[tuple[str, ...], flag("METHOD.FIELD=VALUE ...", "the methods' own: bdjax ls defenses NAME", CONFIG)]
Axes = Annotated[tuple[str, ...], flag("METHOD.NAME=V1,V2 ...", "one member with the methods' own values", HYPER)]
CheckpointEvery = Annotated[float | None, flag("SECONDS", "5 to 60, as many as make them cost a hundredth")]
LogTo = Annotated[tuple[str, ...], flag(f"{choices(tuple(PACKAGES))} ...", "the log file alone")]
GridFile = Annotated[str | None, flag("[FILE]", "the grid is what the flags say")]


def _documented(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass, {field: text}."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    pairs = itertools.pairwise(body.body)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _parted(text: str) -> tuple[str, str | None]:
    """What a flag is, and what its text says of its default in words."""
    found = re.fullmatch(r"(.*)[;.] default: (.*?)\.?", text, re.IGNORECASE)
    return (f"{found[1]}.", found[2]) if found else (text, None)


def _word(name: str, kind: Any) -> str:
    """The word for the value of a field of this type."""
    inner = (get_args(kind) or (kind,))[0]
    word = {int: "INT", float: "FLOAT"}.get(inner) or WORDS[name]
    return f"{word} ..." if get_origin(kind) is tuple else word


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _shown(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and help of each flag of a dataclass; the default is what its text says after "default:", or its value."""
    types, texts = get_type_hints(kind), _documented(kind)
    for field in dataclasses.fields(kind):
        if field.name not in SETTINGS:
            text, unset = _parted(texts[field.name])
            word = _word(field.name, types[field.name])
            yield field.name, types[field.name], flag(word, unset or _value(field.default), text)


def _flags_of_a_grid() -> type:
    """The fields of a grid as flags, none of which has to be given, with the settings of methods."""
    fields: list[Any] = [
        (name, Annotated[kind | None, shown], dataclasses.field(default=None)) for name, kind, shown in _shown(Grid)
    ]
    fields += [(name, kind, dataclasses.field(default=())) for name, kind in (("config", Settings), ("hyper", Axes))]
    return dataclasses.make_dataclass("Scenario", fields, frozen=True)


def _flags_of_learning() -> type:
    """The fields of :class:`Learning` as flags."""
    fields: list[Any] = [
        (name, Annotated[kind, shown], dataclasses.field(default=None)) for name, kind, shown in _shown(Learning)
    ]
    return dataclasses.make_dataclass("LearningFlags", fields, bases=(Learning,), frozen=True)


if TYPE_CHECKING:
    Scenario = Any
    LearningFlags = Learning
else:
    Scenario = _flags_of_a_grid()  # what to run; None: as the grid has it, which the flags change
    LearningFlags = _flags_of_learning()

TUNED = "as tuned, else as measured for this platform"


@dataclasses.dataclass(frozen=True)
class Executed:
    """How populations run; the default is what was tuned on this machine, else the one measured for this platform."""

    strategy: Annotated[str | None, flag(choices(STRATEGIES), TUNED)] = None
    """All members at once, in chunks, step by step for each, or one after another."""
    lowering: Annotated[str | None, flag(choices(LOWERINGS), TUNED)] = None
    """Of convolutions."""
    loop: Annotated[str | None, flag(choices(LOOPS), TUNED)] = None
    """Of training steps: one compiled loop, or a compiled step at a time."""
    chunk: Annotated[int | None, flag("INT", TUNED)] = None
    """Members at once; 0 = as many as fit."""
    devices: Annotated[int | None, flag("INT", TUNED)] = None
    """Local devices that share the members."""
    tuned: bool = True
    """Start from what `bdjax plan` measured; a field given here replaces one of it."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Which cells of the grid."""

    scale: Annotated[Literal["full", "small"] | None, flag("{full,small}", "full")] = None
    """Which grid of FILE: its `grid`, or its `small`."""
    only: Annotated[tuple[str, ...], flag("AXIS=VALUE ...", "all cells")] = ()
    """Keeps the cells that match; axes are dataset, model, attack, defense and spc."""
    limit_cells: Annotated[int | None, flag("INT", "all cells")] = None
    """Number of cells at most."""

    def limit(self) -> int | None:
        """The number of cells at most.

        Raises:
          UserError: it is below 1.
        """
        if self.limit_cells is not None and self.limit_cells < 1:
            raise UserError(f"limit-cells {self.limit_cells} is not allowed; it is at least 1")
        return self.limit_cells


ANY = "whichever the folder holds"


@dataclasses.dataclass(frozen=True)
class Picked:
    """Which record of a folder; a flag is needed only as far as the folder holds several."""

    dataset: Annotated[str | None, flag("NAME", ANY)] = None
    """Data set of the network, or the path of a folder with it."""
    model: Annotated[str | None, flag("NAME", ANY)] = None
    """Network; of path/to/file.py:factory the name of the factory is enough."""
    width: Annotated[int | None, flag("INT", ANY)] = None
    """Channels of its first stage."""
    attack: Annotated[str | None, flag("NAME", ANY)] = None
    """Attack it was trained with."""
    defense: Annotated[str | None, flag("NAME", "none, the network as it was trained")] = None
    """The defended network, which is made again from its key."""
    spc: Annotated[int | None, flag("INT", ANY)] = None
    """Clean samples per class the defender held."""
    hyper: Annotated[str | None, flag("JSON", ANY)] = None
    """Traced hyper-parameters of the defense as its record has them, e.g. '{"lr":0.01}'."""
    seed: Annotated[int | None, flag("INT", ANY)] = None
    """Of the member."""
    poison_ratio: Annotated[float | None, flag("FLOAT", ANY)] = None
    """Of the member."""
    profile: Annotated[str | None, flag(choices(PROFILES), ANY)] = None
    """Profile of its methods."""
    cell: Annotated[str | None, flag("HASH", ANY)] = None
    """Hash of the cell, as the records have it."""

    def facts(self) -> dict[str, Any]:
        """What a record has to say, {fact: value} as :func:`bdjax.results.member.record` takes it; None = anything.

        Raises:
          UserError: an unknown data set, or hyper-parameters in another form than a record's.
        """
        from bdjax.data import spec

        facts = dataclasses.asdict(self)
        ratio, name = facts.pop("poison_ratio"), None if self.dataset is None else spec(self.dataset).name
        return {**facts, "ratio": ratio, "dataset": name, "hyper": _hyper_text(self.hyper)}


def execution_of(executed: Executed) -> dict[str, Any]:
    """The fields of an execution that a command line sets; what was tuned, or the model's default, gives the others."""
    return {name: value for name in Execution._fields if (value := getattr(executed, name, None)) is not None}


def _hyper_text(text: str | None) -> str | None:
    """Hyper-parameters in the form of a record."""
    try:
        values = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        values = text
    if values is not None and not isinstance(values, dict):
        raise UserError(f"--hyper takes what a record tells, e.g. '{{\"lr\":0.01}}'; given {text!r}")
    return None if values is None else canonical(values)
