"""The data sets, by name."""

from bdjax.data.cifar10 import CIFAR10
from bdjax.data.cifar100 import CIFAR100
from bdjax.data.digits import DIGITS
from bdjax.data.gtsrb import GTSRB
from bdjax.data.mnist import FASHION_MNIST, MNIST
from bdjax.data.source import Source
from bdjax.data.svhn import SVHN
from bdjax.data.tiny_imagenet import TINY_IMAGENET

DATASETS: dict[str, Source] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "gtsrb": GTSRB,
    "tiny_imagenet": TINY_IMAGENET,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
}
