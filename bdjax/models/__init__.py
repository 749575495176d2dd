"""Classifiers, by name."""

from bdjax.models.build import PRECISIONS
from bdjax.models.cnn import cnn
from bdjax.models.preact_resnet import preactresnet18

MODELS = {"cnn": cnn, "preactresnet18": preactresnet18}

__all__ = ["MODELS", "PRECISIONS", "cnn", "preactresnet18"]
