"""Which network a state dict belongs to, and what to say when it is another one than expected."""

import inspect
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.interop.layout import Tensor, layout, torch_name
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


def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
    """Find the network of the table whose modules are those of a state dict; None if none has them.

    Names alone decide, so shapes may still be wrong; width and classes are read off the first and the last layer.

    Args:
      state: {name: tensor}; prefixes and masks are taken off already (:func:`bdjax.interop.state.cleaned`).
    """
    modules = {name.rpartition(".")[0] for name in state}
    for name, factory in MODELS.items():
        reducible = "depth" in inspect.signature(factory).parameters
        for depth in _DEPTHS if reducible else (None,):
            model = factory(_ANY, depth=depth) if reducible else factory(_ANY)
            addresses = [torch_name(a) for _, a in model.arch.registered] + [torch_name(a) for a in model.arch.heads]
            first, last = state.get(f"{addresses[0]}.weight"), state.get(f"{addresses[-1]}.weight")
            if modules == set(addresses) and first is not None and last is not None and first.ndim and last.ndim:
                return Recognised(name, first.shape[0], last.shape[0], depth)
    return None


def check_fit(model: Model, state: Mapping[str, np.ndarray]) -> None:
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


def _differences(tensors: tuple[Tensor, ...], state: Mapping[str, np.ndarray]) -> list[str]:
    known = {t.name for t in tensors}
    wrong = []
    for t in tensors:
        if t.name not in state:
            if t.kind != "count":
                wrong.append(f"{t.name} {list(t.shape)} is missing")
        elif t.shape != state[t.name].shape and not (t.kind == "count" and state[t.name].size == 1):
            wrong.append(f"{t.name} is {list(state[t.name].shape)}, not {list(t.shape)}")
    return wrong + [f"{name} {list(state[name].shape)} is unexpected" for name in state if name not in known]


def _reason(model: Model, tensors: tuple[Tensor, ...], state: Mapping[str, np.ndarray]) -> str:
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
