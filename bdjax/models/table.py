"""A classifier from its name and what of it is reduced."""

import inspect

from bdjax.errors import UserError, choose
from bdjax.models.cnn import cnn
from bdjax.models.efficientnet import efficientnet_b3
from bdjax.models.mobilenet import mobilenet_v3_large
from bdjax.models.preact_resnet import preactresnet18
from bdjax.models.vgg import vgg19_bn
from bdjax.types import DataSpec, Model

MODELS = {
    "cnn": cnn,
    "preactresnet18": preactresnet18,
    "vgg19_bn": vgg19_bn,
    "efficientnet_b3": efficientnet_b3,
    "mobilenet_v3_large": mobilenet_v3_large,
}


def by_name(name: str, spec: DataSpec, *, width: int | None = None, depth: int | None = None) -> Model:
    """Build a network of the table.

    Args:
      name: of :data:`MODELS`.
      spec: data set facts.
      width: channels of its first stage; None = its own.
      depth: at most so many blocks per stage; None = all.

    Raises:
      UserError: an unknown name, or a reduction the network does not have.
    """
    make = MODELS[choose("model", name, MODELS)]
    given = {field: value for field, value in (("width", width), ("depth", depth)) if value is not None}
    for field in given.keys() - inspect.signature(make).parameters.keys():
        raise UserError(f"{name} has no {field} to reduce")
    return make(spec, **given)
