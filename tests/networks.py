"""Reduced networks for tests, and variables that are drawn without compiling a program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.models import MODELS
from bdjax.types import DataSpec

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
WIDTHS = {"cnn": 4, "preactresnet18": 4, "vgg19_bn": 2, "efficientnet_b3": 5, "mobilenet_v3_large": 4}
PUBLISHED = tuple(name for name in MODELS if name != "cnn")  # they have a depth
SLOWEST = ("efficientnet_b3",)  # to compile; of the same parts as MobileNet
INVERTED = ("efficientnet_b3", "mobilenet_v3_large")  # of many small layers: slow to trace and to compile
# As users compile: for programs that must round alike, in tests that are compiled lightly.
EXACT = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
DROPPING = ("vgg19_bn", "efficientnet_b3", "mobilenet_v3_large")  # they draw at random in train mode


def spec(classes=10, size=32):
    return DataSpec("x", (size, size, 3), classes, MEAN, STD, False, 4)


def reduced(name, size=32, classes=5, **fields):
    """A network of the table, narrow and shallow, that needs no key in train mode."""
    cut = {**({"depth": 1} if name in PUBLISHED else {}), **({"drop": False} if name in DROPPING else {})}
    return MODELS[name](spec(classes, size), WIDTHS[name], **{**cut, **fields})


def activated(model):
    """Addresses of the activations after norms: all but those that end an inverted residual block."""
    projections = {}
    for norm in model.arch.norms:
        block, _, name = norm.rpartition("/")
        if name.startswith("block_"):
            projections[block] = norm
    return [f"{norm}/act" for norm in model.arch.norms if norm not in projections.values()]


def shapes(model):
    """The variables without numbers."""
    return _shapes(model, jnp.result_type(float))


@functools.cache
def _shapes(model, dtype):
    """They depend on whether float64 is enabled."""
    return jax.eval_shape(model.init, jax.random.key(0))


def drawn(model, seed=0):
    """Variables of a network that is no fresh one: kernels of unit gain, and norms, biases and statistics that are drawn too."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        ranges = {"scale": (0.5, 1.5), "bias": (-0.3, 0.3), "mean": (-0.5, 0.5), "var": (0.5, 2.0)}
        bound = np.sqrt(3 / max(1, np.prod(leaf.shape[:-1])))
        low, high = ranges.get(path.rpartition("/")[2], (-bound, bound))
        return generator.uniform(low, high, leaf.shape).astype(leaf.dtype)

    abstract = shapes(model)
    return jax.device_put(  # which compiles nothing: jnp.asarray does, for every shape
        {
            name: tree.replace(abstract[name], {p: draw(p, leaf) for p, leaf in tree.flatten(abstract[name]).items()})
            for name in ("params", "batch_stats")
        }
    )
