"""The data sets, by name."""

from bdjax.data.cifar10 import CIFAR10
from bdjax.data.digits import DIGITS
from bdjax.data.source import Source

DATASETS: dict[str, Source] = {"digits": DIGITS, "cifar10": CIFAR10}
