"""Trace the methods of a cell on its shapes before anything is trained: what cannot run is refused at once, with its place.

Nothing is computed: every function is evaluated on shapes alone, as JAX does when it compiles. Of the methods of this package
only what depends on the cell is traced: poison inside the batch, whose places have to fit into it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data import clean_subset
from bdjax.errors import PluginError
from bdjax.keys import Stream, root, stream
from bdjax.models.build import shapes
from bdjax.plugins.load import is_path, place
from bdjax.plugins.returned import difference, leaf_of, returns, shape_of, shapes_of
from bdjax.plugins.usable import described
from bdjax.sweep.cell import DefenseCell, TrainCell
from bdjax.train import assets
from bdjax.train.evaluate import EvalSet
from bdjax.train.experiment import Data, preparation
from bdjax.types import Attack, CleanSet, Dataset, Defended, DefenderView, Defense, Model, Split

ADDED = frozenset({"plug", "plug_stats", "bounds"})  # collections of variables that a defense may add
UNKNOWN = object()  # assets whose shapes only the preparation itself shows


def attack(cell: TrainCell, made: Attack, dataset: Dataset) -> None:
    """Trace the functions of a cell's attack on the shapes of the data set.

    Args:
      cell: what is to be trained, or measured where its networks are imported.
      made: the attack that was built for it.
      dataset: facts and sizes are read, and no images.

    Raises:
      UserError: a function fails, or returns something else than it has to; or the batch is too small for its places.
    """
    own = is_path(cell.attack)
    if not own and (made.batch is None or cell.imported is not None):
        return
    rows = len(dataset.train.labels)
    size = min(made.recipe.batch, rows)
    images = jax.ShapeDtypeStruct((size, *dataset.spec.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    key, number = jax.random.key(0), jax.ShapeDtypeStruct((), jnp.int32)
    where = _where(made, cell.attack)
    if own:
        every = jax.ShapeDtypeStruct((rows,), jnp.int32)
        chosen = (jax.ShapeDtypeStruct((rows,), jnp.bool_), jax.ShapeDtypeStruct((), jnp.bool_))
        returns(where("select"), "select", made.select, (key, every, number), chosen)
        returns(where("relabel"), "relabel", made.relabel, (labels,), labels)
    prepared = _prepared(made, dataset, cell.root)
    if prepared is UNKNOWN:
        return
    trigger = shapes_of(where("init"), "init", made.init, key, prepared)
    if own:
        returns(where("stamp"), "stamp", made.stamp, (trigger, key, images), images)
        if made.train_stamp is not None:
            returns(where("train_stamp"), "train_stamp", made.train_stamp, (trigger, key, images), images)
    if made.batch is not None and cell.imported is None:
        ratio = jax.ShapeDtypeStruct((), jnp.float32)
        other = (images, labels) if made.recipe.second_batch else None
        arguments = (trigger, key, images, labels, ratio, other)
        returns(where("batch"), "batch", made.batch, arguments, (images, labels, ratio, trigger))
    if own and made.update is not None:
        update = made.update
        returns(where("update"), "update", lambda t: update(t, jax.tree.map(_slope, t)), (trigger,), trigger)


def defense(cell: DefenseCell, made: Defense, model: Model, dataset: Dataset) -> None:
    """Trace a user's own defense on the shapes of a network and of what it is shown; the methods of this package are not traced.

    Args:
      cell: what is to run.
      made: the defense that was built for it.
      model: the network of its training cell.
      dataset: facts are read.

    Raises:
      UserError: it fails, reads what it does not name, or returns something else than defended variables.
    """
    if not is_path(cell.defense):
        return
    name = cell.defense.rpartition(":")[2]
    here = place(made.defend) or cell.defense
    before = shapes(model)
    view = _view(made, before, cell, dataset)
    read: dict[str, None] = {}
    watched = _watched(read)

    def run(key: Any, seen: DefenderView, hyper: Any) -> Defended:
        found = made.defend(key, watched(*seen), hyper)
        if not isinstance(found, Defended):
            raise PluginError(here, f"{name} returns {described(found)}; a defense returns bdjax.types.Defended(variables)")
        return found

    try:
        found = shapes_of(here, name, run, jax.random.key(0), view, jax.tree.map(leaf_of, made.hyper))
    except PluginError as error:
        if not read or "None" not in error.why:
            raise
        fields = " and ".join(f"view.{field}" for field in read)
        names = ", ".join(repr(field) for field in (*sorted(made.needs), *read))
        why = f"it reads {fields}, which is None because `needs` does not name it: Defense(needs=frozenset({{{names}}}))"
        raise PluginError(error.where, f"{error.why}; {why}") from error
    _variables(here, name, model, before, found.variables)
    _details(here, name, found)


def _prepared(made: Attack, dataset: Dataset, number: int) -> Any:
    """What an attack prepares, as shapes: None where it prepares nothing, :data:`UNKNOWN` where only running it would show."""
    if made.prepare is None:
        return None
    if made.recipe.prepare_per == "seed":
        here = place(made.prepare) or "prepare"
        return shapes_of(here, "prepare", preparation(made, dataset), jax.random.key(0), _data(dataset))
    key = stream(root(number), Stream.PREPARE)
    kept = assets.load(assets.place(made, dataset, key))
    return UNKNOWN if kept is None else jax.tree.map(leaf_of, kept)


def _data(dataset: Dataset) -> Data:
    """Shapes of what all members share (see :func:`bdjax.train.experiment.stage`)."""
    train, test = (
        Split(shape_of(np.shape(split.images), jnp.uint8), shape_of(np.shape(split.labels), jnp.int32))
        for split in (dataset.train, dataset.test)
    )
    return Data(train, None, EvalSet(test.images, test.labels, None, test.labels), None)


def _view(made: Defense, before: Any, cell: DefenseCell, dataset: Dataset) -> DefenderView:
    """What a defense is shown, as shapes."""
    view = DefenderView(before)
    if made.needs & {"clean", "triggered"}:
        classes, spc = dataset.spec.classes, cell.spc or 0
        labels = shape_of((len(dataset.train.labels),), jnp.int32)
        index, role = jax.eval_shape(
            lambda key, rows: clean_subset.draw(key, rows, classes, spc, made.validation), jax.random.key(0), labels
        )
        images = shape_of((*index.shape, *dataset.spec.image_shape), jnp.uint8)
        view = view._replace(clean=CleanSet(images, shape_of(index.shape, jnp.int32), role, shape_of((), jnp.int32)))
        if "triggered" in made.needs:
            view = view._replace(triggered=images)
    if "test_accuracy" in made.needs:
        view = view._replace(test_accuracy=shape_of((), jnp.float32))
    return view


def _watched(read: dict[str, None]) -> Callable[..., DefenderView]:
    """A view that notes which fields were read that the defense is not given."""

    class View(DefenderView):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if value is None and name in DefenderView._fields:
                read[name] = None
            return value

    return View


def _variables(here: str, name: str, model: Model, before: Any, after: Any) -> None:
    """Refuse variables that are not those of the network."""
    if not isinstance(after, Mapping):
        raise PluginError(here, f"the variables that {name} returns are {described(after)}; they are a dict as view.variables is")
    kept = {collection: tree for collection, tree in after.items() if collection not in ADDED or collection in before}
    wrong = difference(dict(before), kept)
    if wrong:
        raise PluginError(here, f"among the variables {name} {wrong}; they keep the names, shapes and dtypes of view.variables")
    images = shape_of((2, *model.spec.image_shape), jnp.float32)
    try:
        jax.eval_shape(lambda v, x: model.apply(v, x).logits, after, images)
    except Exception as error:
        added = ", ".join(sorted(set(after) - set(before)))
        raise PluginError(
            here, f"the network cannot run with the {added} that {name} returns: {type(error).__name__}: {error}"
        ) from error


def _details(here: str, name: str, found: Defended) -> None:
    """Refuse masks and a trace that no record can hold."""
    masks = {} if found.masks is None else found.masks
    if not isinstance(masks, Mapping) or any(len(getattr(keep, "shape", ())) != 1 for keep in masks.values()):
        raise PluginError(
            here, f"the masks that {name} returns are a dict of arrays with one axis, {{address: keep factors f[d]}}"
        )
    if jax.tree.leaves(found.trace) and not hasattr(found.trace, "_asdict"):
        raise PluginError(here, f"the trace that {name} returns is {described(found.trace)}; it is a NamedTuple of arrays")


def _where(made: Attack, name: str) -> Callable[[str], str]:
    return lambda hook: place(getattr(made, hook)) or name


def _slope(leaf: Any) -> Any:
    """The gradient of a leaf of a trigger: that of integers carries nothing."""
    return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else np.zeros(leaf.shape, jax.dtypes.float0)
