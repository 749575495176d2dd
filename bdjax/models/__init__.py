"""Classifiers, by name."""

from bdjax.models.build import PRECISIONS
from bdjax.models.by_name import MODELS, by_name
from bdjax.models.cnn import cnn
from bdjax.models.efficientnet import efficientnet_b3
from bdjax.models.mobilenet import mobilenet_v3_large
from bdjax.models.preact_resnet import preactresnet18
from bdjax.models.vgg import vgg19_bn

__all__ = [
    "MODELS",
    "PRECISIONS",
    "by_name",
    "cnn",
    "efficientnet_b3",
    "mobilenet_v3_large",
    "preactresnet18",
    "vgg19_bn",
]
