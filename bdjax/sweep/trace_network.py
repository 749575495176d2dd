"""Trace a network of the user's own on the shapes of a cell: what it says of itself is so, before anything is trained."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.errors import PluginError, UserError
from bdjax.models.build import PRECISIONS, shapes
from bdjax.models.table import MODELS
from bdjax.plugins.load import factory, is_path
from bdjax.plugins.returned import difference, shape_of, shapes_of
from bdjax.plugins.running import place
from bdjax.plugins.usable import described
from bdjax.sweep.cell import TrainCell
from bdjax.types import Loop, Model, Output

COLLECTIONS = ("params", "batch_stats")
STARTS = ("features", "head")
ROWS = 2
LAYERS = {"convs": "registered", "norms": "norms", "heads": "heads"}  # the field that names them
LEAVES = {
    "convs": {"params": {"kernel": 4}},  # {collection: {leaf: axes}}
    "norms": {"params": {"scale": 1, "bias": 1}, "batch_stats": {"mean": 1, "var": 1}},
    "heads": {"params": {"kernel": 2, "bias": 1}},
}


class _Subject(NamedTuple):
    """A network and what every check asks of it."""

    here: str  # file and line of its factory
    name: str
    model: Model
    variables: Any  # shapes
    images: Any

    def wrong(self, why: str) -> PluginError:
        return PluginError(self.here, f"{self.name} {why}")

    def apply(self, inputs: Any, **how: Any) -> Output:
        """A pass, traced; ``how`` is static but for arrays."""

        def run(variables: Any, x: Any) -> Output:
            out = self.model.apply(variables, x, **how)
            if not isinstance(out, Output):
                raise self.wrong(
                    f"returns {described(out)} where Model.apply returns bdjax.types.Output(logits, variables, taps)"
                )
            return out

        found: Output = shapes_of(self.here, self.name, run, self.variables, inputs)
        return found


def network(cell: TrainCell, model: Model) -> None:
    """Trace a user's own network on the shapes of a cell; those of this package are not traced.

    Args:
      cell: what is to be trained.
      model: the network that was built for it.

    Raises:
      UserError: it fails, gives logits of another shape, names what it does not have, or cannot be built again otherwise.
    """
    if not is_path(cell.model):
        return
    name = cell.model.rpartition(":")[2]
    here = place(factory("model", cell.model, MODELS)) or cell.model
    if cell.width not in (None, model.width):
        raise PluginError(here, f"{name} was asked for width {cell.width} and says that its width is {model.width}")
    images = shape_of((ROWS, *model.spec.image_shape), jnp.float32)
    subject = _Subject(here, name, model, shapes(model), images)
    _variables(subject)
    _passes(subject)
    _layers(subject)
    taps = _taps(subject)
    _starts(subject, taps)
    if model.dtype is not None and taps["features"].dtype != model.dtype:
        raise subject.wrong(
            f"has features of {taps['features'].dtype} in precision {cell.precision}: its layers have to compute in run.dtype, "
            "as those of bdjax.nn.layers do"
        )
    _rebuilt(subject)


def _variables(subject: _Subject) -> None:
    """Parameters and running statistics, all of float32."""
    found = subject.variables
    if not isinstance(found, Mapping) or set(found) != set(COLLECTIONS):
        kept = sorted(found) if isinstance(found, Mapping) else described(found)
        raise subject.wrong(f"has the variables {kept}; a run carries along {' and '.join(COLLECTIONS)}, both and no other")
    for path, leaf in tree.flatten(found).items():
        if leaf.dtype != jnp.float32:
            raise subject.wrong(f"has {path} of {leaf.dtype}; parameters and running statistics are float32")


def _passes(subject: _Subject) -> None:
    """Logits per class in both modes, and in train mode statistics of the rows that count."""
    key, mask = jax.random.key(0), jnp.ones(ROWS, jnp.float32)
    classes = subject.model.spec.classes
    for how in ({}, {"train": True, "mask": mask, "key": key}):
        out = subject.apply(subject.images, **how)
        wrong = difference(shape_of((ROWS, classes), jnp.float32), out.logits)
        if wrong:
            raise subject.wrong(f"{wrong}: logits of {ROWS} images of {classes} classes (spec.classes)")
        changed = difference(dict(subject.variables), out.variables)
        if changed:
            raise subject.wrong(f"{changed}, among the variables of Output")
    program = jax.make_jaxpr(
        lambda mask, variables, x: subject.model.apply(variables, x, train=True, mask=mask, key=key).variables["batch_stats"]
    )(mask, subject.variables, subject.images)
    read = {id(variable) for equation in program.jaxpr.eqns for variable in equation.invars}
    if subject.variables["batch_stats"] and id(program.jaxpr.invars[0]) not in read:
        raise subject.wrong(
            "has running statistics that do not follow the rows that count in a batch: use bdjax.nn.layers.NormAct, or hand "
            "run.train and run.mask on to its norms"
        )


def _layers(subject: _Subject) -> None:
    """Layers lie where ArchSpec says, with the leaves of their kind."""
    arch = subject.model.arch
    for kind, field in LAYERS.items():
        for address in getattr(arch, kind):
            for collection, leaves in LEAVES[kind].items():
                for leaf, axes in leaves.items():
                    try:
                        found = tree.get(subject.variables[collection], f"{address}/{leaf}")
                    except UserError as error:
                        raise subject.wrong(f"names {address!r} in ArchSpec.{field}, which is no layer of it: {error}") from error
                    if len(getattr(found, "shape", ())) != axes:
                        given = f"{list(found.shape)}" if hasattr(found, "shape") else described(found)
                        raise subject.wrong(f"names {address!r} in ArchSpec.{field}; its {leaf} is {given}, not of {axes} axes")
    apart = set(arch.norms) ^ {address for kind, address in arch.registered if kind == "norm"}
    if apart:
        raise subject.wrong(
            f"has {', '.join(sorted(apart))} in one of ArchSpec.norms and ArchSpec.registered, and not in the other"
        )
    for norm, conv in arch.feeds:
        if norm not in arch.norms or conv not in arch.convs:
            raise subject.wrong(
                f"has ({norm!r}, {conv!r}) in ArchSpec.feeds: pairs of one of its norms and one of its convolutions"
            )


def _tapped(subject: _Subject) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where an address is named that a pass has to tap, and the addresses."""
    arch = subject.model.arch
    yield "every network", STARTS
    yield "ArchSpec.stages", arch.stages
    yield "ArchSpec.plug_site", (arch.plug_site,) if arch.plug_site else ()
    yield "ArchSpec.activations", arch.activations
    yield "ArchSpec.registered", arch.convs
    yield "ArchSpec.norms", tuple(address for norm in arch.norms for address in (norm, f"{norm}/in"))
    yield "ArchSpec.in_place", tuple(address for _, address in arch.in_place)


def _taps(subject: _Subject) -> dict[str, Any]:
    """The tensors at all addresses, as shapes."""
    taps: dict[str, Any] = {}
    for field, addresses in _tapped(subject):
        try:
            taps |= subject.apply(subject.images, record=addresses).taps
        except PluginError:
            raise
        except UserError as error:  # of the network that `build` made: the address and those there are
            remedy = "x = tap(x, ADDRESS, run), see bdjax.nn.layers.tap"
            raise subject.wrong(f"does not tap an address of {field}: {error} In its module: {remedy}") from error
        for address in addresses:
            if address not in taps:
                raise subject.wrong(f"does not tap {address!r}, an address of {field}: Output.taps lacks it")
    arch = subject.model.arch
    for field, addresses in (("stages", arch.stages), ("plug_site", (arch.plug_site,) if arch.plug_site else ())):
        for address in addresses:
            if len(taps[address].shape) != 4:
                raise subject.wrong(f"has {list(taps[address].shape)} at {address!r} of ArchSpec.{field}; it is a map [b h w c]")
    return taps


def _starts(subject: _Subject, taps: Mapping[str, Any]) -> None:
    """A pass can begin at the features and at the head, whose input is that of the first linear layer."""
    for start in STARTS:
        logits = subject.apply(taps[start], start=start).logits
        if logits.shape != (ROWS, subject.model.spec.classes):
            raise subject.wrong(f"gives logits {list(logits.shape)} where a pass begins at {start!r}; skip what lies before it")
    if subject.model.arch.heads:
        first = subject.model.arch.heads[0]
        rows = tree.get(subject.variables["params"], f"{first}/kernel").shape[0]
        if taps["head"].shape != (ROWS, rows):
            raise subject.wrong(
                f"has {list(taps['head'].shape)} at 'head' and {rows} inputs of {first}: the address 'head' is the input of the "
                "first linear layer of ArchSpec.heads"
            )


def _rebuilt(subject: _Subject) -> None:
    """Built again with other static fields it has them, and nothing else changes."""
    model = subject.model
    asked: dict[str, Any] = {
        "norm_eps": 2 * model.norm_eps,
        "norm_momentum": model.norm_momentum / 2,
        "dtype": PRECISIONS["bfloat16"],
        "loop": Loop("dispatch"),
    }
    other = model.rebuild(**asked, lowering="patches")
    for field, value in {**asked, "width": model.width, "depth": model.depth, "arch": model.arch, "spec": model.spec}.items():
        if getattr(other, field) != value:
            raise subject.wrong(f"built again by Model.rebuild has {field} {getattr(other, field)!r}; asked for {value!r}")
