"""Which network a state dict belongs to, and what to say when it is another one than expected."""

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.interop.layout import COUNT, Tensor, layout, torch_name
from bdjax.models import MODELS
from bdjax.types import DataSpec, Model

SHOWN = 4  # mismatching names listed in a message
_DEPTHS = (None, 1, 2, 3, 4, 5, 6, 7)
_ANY = DataSpec("any", (32, 32, 3), 10, (0.0,) * 3, (1.0,) * 3, False, 4)


class Recognised(NamedTuple):
    """A network of the table that has exactly the modules of a state dict."""

    model: str
    width: int  # output channels of the first convolution
    classes: int
    depth: int | None = None  # as in the network's factory; None = whole

    def __str__(self) -> str:
        depth = "" if self.depth is None else f", depth {self.depth}"
        return f"{self.model} (width {self.width}, {self.classes} classes{depth})"


class _Known(NamedTuple):
    """The modules of a network of the table at one of its depths."""

    model: str
    depth: int | None
    modules: frozenset[str]
    first: str  # name of the first weight
    last: str


@functools.cache
def _table() -> tuple[_Known, ...]:
    found = []
    for name, factory in MODELS.items():
        reducible = "depth" in inspect.signature(factory).parameters
        for depth in _DEPTHS if reducible else (None,):
            model = factory(_ANY, depth=depth) if reducible else factory(_ANY)
            modules = [torch_name(a) for _, a in model.arch.registered] + [torch_name(a) for a in model.arch.heads]
            found.append(_Known(name, depth, frozenset(modules), f"{modules[0]}.weight", f"{modules[-1]}.weight"))
    return tuple(found)


def _modules(names: Collection[str]) -> frozenset[str]:
    return frozenset(name.rpartition(".")[0] for name in names)


def recognise(state: Mapping[str, Any]) -> Recognised | None:
    """Find the network of the table whose modules are those of a state dict; None if none has them.

    Names alone decide, so shapes may still be wrong; width and classes are read off the first and the last layer.

    Args:
      state: {name: tensor}, of which only shapes are read; prefixes and masks are taken off already
        (:func:`bdjax.interop.names.plain`).
    """
    modules = _modules(state)
    for known in _table():
        first, last = state.get(known.first), state.get(known.last)
        if modules == known.modules and first is not None and last is not None and first.ndim and last.ndim:
            return Recognised(known.model, first.shape[0], last.shape[0], known.depth)
    return None


def likeness(names: Collection[str]) -> float:
    """Return how much the modules of a state dict are those of the nearest network of the table, in [0, 1]; 1 = the same."""
    modules = _modules(names)
    return max(len(modules & known.modules) / max(len(modules | known.modules), 1) for known in _table())


def nearest(names: Collection[str]) -> str:
    """Return the network of the table that tensors of these names are nearest to, and the first names that differ, in words."""
    modules = _modules(names)
    best = max(_table(), key=lambda known: len(modules & known.modules) / max(len(modules | known.modules), 1))
    if not modules & best.modules:
        return "none has a layer in common with it"
    model = MODELS[best.model](_ANY, **({} if best.depth is None else {"depth": best.depth}))
    wanted = [tensor.name for tensor in layout(model) if tensor.kind != "count"]
    lacks = [f"{name} is missing" for name in wanted if name not in names]
    more = [f"{name} is unexpected" for name in names if name not in wanted and not name.endswith(COUNT)]
    half = SHOWN // 2
    shown = [*lacks[: max(half, SHOWN - len(more))], *more[: max(half, SHOWN - len(lacks))]]
    depth = "" if best.depth is None else f" of depth {best.depth}"
    return f"the nearest is {best.model}{depth}: {'; '.join(shown)} ({len(lacks) + len(more)} tensors differ)"


def check_fit(model: Model, state: Mapping[str, Any]) -> None:
    """Compare names and shapes of a state dict with those a network needs; counts of batches may be absent.

    Raises:
      UserError: they differ; says which network, width or number of classes the file has, and lists the first differences.
    """
    tensors = layout(model)
    wrong = _differences(tensors, state)
    if not wrong:
        return
    more = f"; … ({len(wrong)} in all)" if len(wrong) > SHOWN else ""
    raise UserError(f"{_reason(model, tensors, state)}: {'; '.join(wrong[:SHOWN])}{more}")


def _differences(tensors: tuple[Tensor, ...], state: Mapping[str, Any]) -> list[str]:
    known = {t.name for t in tensors}
    wrong = []
    for t in tensors:
        if t.name not in state:
            if t.kind != "count":
                wrong.append(f"{t.name} {list(t.shape)} is missing")
        elif t.shape != state[t.name].shape and not (t.kind == "count" and state[t.name].size == 1):
            wrong.append(f"{t.name} is {list(state[t.name].shape)}, not {list(t.shape)}")
    return wrong + [f"{name} {list(state[name].shape)} is unexpected" for name in state if name not in known]


def _reason(model: Model, tensors: tuple[Tensor, ...], state: Mapping[str, Any]) -> str:
    depth = getattr(model, "depth", None)
    ours = Recognised(model.name, model.width, model.spec.classes, depth)
    found = recognise(state)
    if found is None:
        return f"the file holds no network of the table ({', '.join(MODELS)}) and does not fit {ours}"
    if found.model != model.name or found.depth != depth:
        return f"the file holds {found}, not {ours}"
    first, last = (next(t for t in order if t.name.endswith(".weight")) for order in (tensors, tensors[::-1]))
    if found.classes != last.shape[0]:
        return f"the file has {found.classes} classes ({last.name} {list(state[last.name].shape)}), the model {last.shape[0]}"
    if found.width != first.shape[0]:
        return f"the file has width {found.width} ({first.name} {list(state[first.name].shape)}), the model {first.shape[0]}"
    return f"the file's tensors do not fit {ours}"
