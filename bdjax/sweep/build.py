"""From the names in a cell to the model, attack and defense they stand for, and the hash that names the cell."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bdjax.attacks.user_files import NAMED
from bdjax.configure import configure, recorded
from bdjax.errors import UserError, choose, unknown
from bdjax.plugins.load import factory, source_digest
from bdjax.population import stack
from bdjax.store.hashing import plain, short_hash
from bdjax.sweep import editions, imported, misplaced
from bdjax.sweep.cell import DefenseCell, Point, TrainCell
from bdjax.train.poison import AUGMENT
from bdjax.train.trainer import PREPARE_PER, SCHEDULES
from bdjax.types import Attack, DataSpec, Defense, Model, Recipe

FIXED = ("second_batch", "prepare_per", "shared_trigger")  # fields of a recipe that say how an attack works
SCHEMA = 1  # part of every hash: raise it when records stop being comparable


def attacked(cell: TrainCell) -> tuple[Model, Attack]:
    """The model (not yet adapted to an execution) and the attack of a cell.

    Raises:
      UserError: an unknown name or field.
    """
    from bdjax.attacks.table import ATTACKS
    from bdjax.data import spec
    from bdjax.models import PRECISIONS
    from bdjax.plugins.networks import network

    facts = spec(cell.dataset)
    model = network(cell.model, facts, width=cell.width, depth=cell.depth)
    if cell.precision != "float32":
        model = model.rebuild(dtype=PRECISIONS[cell.precision])
    if cell.imported is not None:
        imported.check(imported.opened(cell.imported), facts, cell.imported)
    if "target" in cell.attack_config and cell.target not in (0, cell.attack_config["target"]):
        other = cell.attack_config["target"]
        raise UserError(f"target is {cell.target}, and {other} in the configuration of {cell.attack}; give one")
    # Target 0 is every attack's default: passing it on only where it was changed spares attacks that have no target.
    overrides = {**({"target": cell.target} if cell.target else {}), **cell.attack_config}
    make = factory("attack", cell.attack, {**ATTACKS, **imported.attacks(cell.imported)})
    try:
        attack = make(facts, overrides or None, profile=cell.profile)
    except UserError as error:
        if better := misplaced.setting(cell.attack, overrides, lambda: make(facts, None, profile=cell.profile)):
            raise better from error
        raise
    if asks_architecture(attack) and "architecture" not in overrides:
        attack = make(facts, {**overrides, "architecture": cell.model}, profile=cell.profile)
    if cell.imported is not None and attack.update is not None:
        raise UserError(
            f"the trigger of {cell.attack} is learned with the network, so it is not known here; leave --attack out to use the "
            "triggered images that were imported"
        )
    return model, attack._replace(recipe=_recipe(attack.recipe, cell))


def pinned(cell: TrainCell, attack: Attack) -> TrainCell:
    """Return the cell with the files of its attack named by their content: a file that is edited during a run changes nothing.

    Args:
      cell: as it was asked for.
      attack: built for it; its configuration names files by their content.
    """
    given = {field: value for field, value in cell.attack_config.items() if isinstance(value, str)}
    named = {field: getattr(attack.config, field, value) for field, value in given.items()}
    named = {field: value for field, value in named.items() if isinstance(value, str) and value.startswith(NAMED)}
    return cell._replace(attack_config={**cell.attack_config, **named}) if named else cell


def asks_architecture(attack: Attack) -> bool:
    """Return whether the configuration of an attack has a field for the name of the network."""
    return "architecture" in getattr(attack.config, "_fields", ())


def _recipe(recipe: Recipe, cell: TrainCell) -> Recipe:
    """The recipe of an attack with what the cell changes: lengths and rates, not how the attack works."""
    for field in FIXED:
        if field in cell.recipe and cell.recipe[field] != getattr(recipe, field):
            raise UserError(f"recipe.{field} is part of how {cell.attack} works and cannot be changed")
    given = cell.recipe.get("augment", recipe.augment)
    if given != recipe.augment and "own" in (given, recipe.augment):
        reason = f"is a field of {cell.attack}" if recipe.augment == "own" else "cannot be 'own'"
        raise UserError(f"recipe.augment {given!r} does not fit {cell.attack}: its augmentation {reason}")
    return sound(recipe._replace(**cell.recipe), cell.attack)


def sound(recipe: Recipe, attack: str) -> Recipe:
    """The recipe of an attack, if a training can follow it.

    Args:
      recipe: what is asked for.
      attack: whose it is, for messages.

    Raises:
      UserError: a value of another type or out of its range.
    """
    owner = f"recipe of {attack}"
    configure({"": Recipe()}, recipe, owner, "")  # types
    choose(f"schedule in the {owner}", recipe.schedule, SCHEDULES)
    choose(f"augment in the {owner}", recipe.augment, AUGMENT)
    choose(f"prepare_per in the {owner}", recipe.prepare_per, PREPARE_PER)
    for field, least in (("epochs", 1), ("batch", 1), ("lr", 0), ("momentum", 0), ("weight_decay", 0)):
        if getattr(recipe, field) < least:
            raise UserError(f"{field} in the {owner} must be at least {least}; given {getattr(recipe, field)}")
    return recipe


def defended(cell: DefenseCell, model: Model) -> Defense:
    """The defense of a cell, built for ``model``.

    Raises:
      UserError: an unknown name or field.
    """
    from bdjax.defenses.table import DEFENSES

    make = factory("defense", cell.defense, {**DEFENSES, "none": _nothing})
    try:
        return make(model, cell.config or None, profile=cell.train.profile)
    except UserError as error:
        if better := misplaced.setting(cell.defense, cell.config, lambda: make(model, None, profile=cell.train.profile)):
            raise better from error
        raise


def _nothing(*_: Any, **__: Any) -> Defense:
    raise UserError("'none' is no defense to build; the rows of a training cell are its record")


def describe(cell: TrainCell | DefenseCell, digest: str) -> dict[str, Any]:
    """Return the full static configuration of a cell; its methods are built for that.

    Args:
      cell: what runs.
      digest: hash of the data set as it is used, so a reduced set is another one.
    """
    if isinstance(cell, TrainCell):
        return described(cell, digest, *attacked(cell))
    model, attack = attacked(cell.train)
    return described(cell, digest, model, attack, defended(cell, model))


def _chosen_facts(spec: DataSpec) -> dict[str, Any]:
    """What a user decides of a data set of one's own besides its pixels; that of a built-in one is given with its name."""
    from bdjax.data import DATASETS

    return {} if spec.name in DATASETS else {name: getattr(spec, name) for name in ("mean", "std", "flip", "pad")}


def described(
    cell: TrainCell | DefenseCell, digest: str, model: Model, attack: Attack, defense: Defense | None = None
) -> dict[str, Any]:
    """Return the full static configuration of a cell as plain JSON values, with every default and the editions of its methods.

    Args:
      cell: what runs.
      digest: hash of the data set as it is used, so a reduced set is another one.
      model, attack, defense: built for the cell; no defense for a training cell.
    """
    train = cell.train if isinstance(cell, DefenseCell) else cell
    network = {"name": model.name, "width": model.width, "depth": model.depth, "precision": train.precision}
    if model.source is not None:
        network["source"] = model.source
    settings = {
        "schema": SCHEMA,
        "dataset": {"name": model.spec.name, "digest": digest, **_chosen_facts(model.spec)},
        "model": editions.numbered(network, model.edition),
        "attack": editions.numbered(_method(train.attack, attack.config), attack.edition),
        "recipe": attack.recipe._asdict(),
        "profile": train.profile,
        "root": train.root,
    }
    if train.imported is not None:
        settings["imported"] = imported.digest(train.imported)
    if isinstance(cell, DefenseCell):
        assert defense is not None
        settings["defense"] = editions.numbered(_method(cell.defense, defense.config), defense.edition)
        settings["spc"] = cell.spc
    return plain(settings)


def _method(name: str, config: Any) -> dict[str, Any]:
    settings = {"name": name, "config": recorded(config)}
    digest = source_digest(name)
    return settings if digest is None else {**settings, "source": digest}


def cell_hash(cell: TrainCell | DefenseCell, digest: str) -> str:
    """Content hash of the static configuration: no seed, ratio or hyper-parameter enters, so a cell can be extended."""
    return short_hash(describe(cell, digest))


def hyper_points(defense: Defense, values: Mapping[str, Sequence[Any]], name: str) -> list[dict[str, Any]]:
    """All combinations of the traced hyper-parameters of a defense, as plain values; leaves not named keep their default.

    Raises:
      UserError: an unknown leaf, or no value for one.
    """
    default = _leaves(defense, name)
    for leaf, axis in values.items():
        if leaf not in default:
            raise misplaced.hyper(name, leaf, axis, defense) or unknown(f"hyper-parameter of {name}", leaf, default)
        if not axis:
            raise UserError(f"hyper-parameter {name}.{leaf} has no value")
        for value in axis:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and not np.ndim(default[leaf])
            if not number or _as(value, default[leaf]) is None:  # as float32 it is not finite
                raise UserError(f"hyper-parameter {name}.{leaf} takes numbers; given {value!r}")
    axes = [[(leaf, value) for value in axis] for leaf, axis in values.items()]
    points = [{leaf: _as(value, default[leaf]) for leaf, value in choice} for choice in itertools.product(*axes)]
    return [{**plain(default), **point} for point in points]


def _leaves(defense: Defense, name: str) -> dict[str, Any]:
    if hasattr(defense.hyper, "_asdict"):
        return defense.hyper._asdict()
    if jax.tree.leaves(defense.hyper):
        raise UserError(f"Defense.hyper of {name} is a {type(defense.hyper).__name__}; it must be a NamedTuple or ()")
    return {}


def _as(value: float, default: Any) -> Any:
    """``value`` as the dtype of the default leaf holds it, so that one number has one hash however it was typed."""
    with np.errstate(over="ignore"):
        return plain(np.asarray(value, default.dtype if hasattr(default, "dtype") else np.float32)[()])


def stack_hyper(defense: Defense, points: Sequence[Point]) -> Any:
    """The hyper-parameters of several members as the defense's pytree, stacked on axis 0."""
    default = _leaves(defense, "this defense")
    if not default:
        return defense.hyper

    def dtype(leaf: Any) -> Any:
        return leaf.dtype if hasattr(leaf, "dtype") else np.float32

    def one(point: Point) -> Any:
        return type(defense.hyper)(**{name: np.asarray(point.hyper[name], dtype(leaf)) for name, leaf in default.items()})

    return stack([one(point) for point in points])
