"""What a defense reads of the addresses of a network, and cannot do without: checked before it is built."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.types import Defense, Model

Factory = Callable[..., Defense]


class _Address(NamedTuple):
    """A kind of address."""

    what: str  # that lies there
    remedy: str  # how a network names it


ADDRESSES: Mapping[str, _Address] = {
    "convs": _Address("convolutions", 'Conv of bdjax.nn.layers, or ArchSpec(registered=(("conv", ADDRESS), …))'),
    "norms": _Address("batch norms", 'NormAct of bdjax.nn.layers, or ArchSpec(registered=(("norm", ADDRESS), …), norms=…)'),
    "heads": _Address("linear layers behind its features", 'tap(x, "head", run) before them, or ArchSpec(heads=…)'),
    "stages": _Address("outputs of stages", 'x = tap(x, "stage1", run), or ArchSpec(stages=…)'),
    "plug_site": _Address("place for a plug", 'x = tap(x, "features", run) of a map [b h w c], or ArchSpec(plug_site=ADDRESS)'),
    "activations": _Address("activations behind norms", "NormAct of bdjax.nn.layers, or ArchSpec(activations=…)"),
}


def reads(*fields: str) -> Callable[[Factory], Factory]:
    """Decorate the factory of a defense that cannot do without some addresses of a network.

    The factory then has them as its attribute ``reads``, and refuses a network that does not name them.

    Args:
      fields: of :data:`ADDRESSES`, fields and properties of :class:`bdjax.types.ArchSpec`.
    """

    def decorate(make: Factory) -> Factory:
        @functools.wraps(make)
        def checked(model: Model, *arguments: Any, **named: Any) -> Defense:
            for field in fields:
                if not getattr(model.arch, field):
                    what, remedy = ADDRESSES[field]
                    raise UserError(f"{make.__name__} needs {what}, and {model.name} names none in ArchSpec.{field}: {remedy}")
            return make(model, *arguments, **named)

        checked.reads = fields  # type: ignore[attr-defined]
        return checked

    return decorate
