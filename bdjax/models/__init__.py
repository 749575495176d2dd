"""Classifiers, by name."""

from bdjax.models.build import PRECISIONS
from bdjax.models.table import MODELS, by_name

__all__ = ["MODELS", "PRECISIONS", "by_name"]
