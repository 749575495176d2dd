"""What the exact savings save, side by side: live taps, VGG's folded linear layer, triggered copies computed once.

    python -m benchmarks.savings --out benchmarks/results/savings_cpu

Each group of rows compares ways to compute the same thing. The results of all ways are compared first: another one is an error.
Then they are measured in turn, round after round, and the best round counts; "gain" is the first way's time over this one's.

* depthwise: layers of EfficientNet-B3 and MobileNet-V3-Large, forward and backward: the native grouped convolution, the
  multiply-adds over all taps (on a padded map, where none is known to be dead) and those over live taps.
* linear: one SGD step with momentum and decay of pooling to 7x7, linear layer and bias, unfolded and folded.
* stamping: preparation of training batches (gather, trigger, crop and flip), stamped in the batch and gathered from copies.
"""

import argparse
import functools
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bdjax.attacks.table import ATTACKS
from bdjax.data.augment import crop_flip, to_float
from bdjax.keys import root
from bdjax.nn.depthwise import depthwise, live_taps
from bdjax.nn.folded_linear import fold, pool, pool_matrix
from bdjax.population.compiler_options import options
from bdjax.train.experiment import stage
from bdjax.train.optimisers import sgd
from benchmarks.measure import seconds, synthetic, write

PARTS = ("depthwise", "linear", "stamping")
LINEAR, CHANNELS = 4096, 512  # VGG's first linear layer and the maps before it


class Layer(NamedTuple):
    """A depthwise convolution at 32 pixels; at 64 its map is twice as large."""

    name: str
    channels: int
    window: int
    stride: int
    size: int


LAYERS = (
    Layer("EfficientNet features.1.0", 40, 3, 1, 16),
    Layer("EfficientNet features.3.1", 288, 5, 1, 4),
    Layer("EfficientNet features.5.1", 816, 5, 1, 2),
    Layer("EfficientNet features.6.0", 816, 5, 2, 2),
    Layer("EfficientNet features.6.1", 1392, 5, 1, 1),
    Layer("EfficientNet features.7.1", 2304, 3, 1, 1),
    Layer("MobileNet features.13", 672, 5, 2, 2),
    Layer("MobileNet features.14", 960, 5, 1, 1),
)


def main() -> None:
    """Measure, part by part; every row is written as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sizes", type=int, nargs="+", choices=(32, 64), default=[32, 64], help="image sizes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width-factor", type=float, default=0.25, help="of the channels and of the linear layer's outputs")
    parser.add_argument("--rows", type=int, default=4096, help="images of the stamping part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = f"python -m benchmarks.savings {shlex.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for part in args.parts:
        for what, members, took, memory in {"depthwise": _depthwise, "linear": _linear, "stamping": _stamping}[part](args):
            first = next(iter(took.values()))
            for how, time in took.items():
                row = {"part": part, "what": what, "members": members, "how": how, "ms per member": 1e3 * time / members}
                row |= {"1000 img/s": args.batch * members / time / 1e3, "MiB per member": memory.get(how), "gain": first / time}
                rows.append(row)
                print(row, flush=True)
            write(
                args.out, command, rows, "Time and memory: lower is better; images per second over all members and gain: higher."
            )


def best(
    ways: dict[str, Callable[[], Any]], rounds: int, tolerance: float, same: Callable[[Any], Any] = lambda result: result
) -> dict[str, float]:
    """Seconds of the best round of each way, after checking that ``same`` of every result is that of the first."""
    reference = jax.tree.map(np.asarray, same(next(iter(ways.values()))()))
    for name, way in ways.items():
        for got, want in zip(jax.tree.leaves(same(way())), jax.tree.leaves(reference), strict=True):
            scale = float(np.max(np.abs(want))) or 1.0
            error = float(np.max(np.abs(np.asarray(got) - want))) / scale
            if not error <= tolerance:
                raise SystemExit(f"{name} differs from the first way by {error:.1e}")
    took = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            took[name] = min(took[name], seconds(way, 0)[0])
    return took


def _jit(function: Callable[..., Any], axes: Any = 0) -> Callable[..., Any]:
    return jax.jit(jax.vmap(function, in_axes=axes), compiler_options=options())


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pads, layout = [(kernel.shape[0] // 2,) * 2] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=x.shape[-1])


def _live(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return depthwise(x, kernel, stride=stride, padding=kernel.shape[0] // 2)


def _all(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same multiply-adds on a map padded beforehand, where no tap is known to be dead."""
    p = kernel.shape[0] // 2
    return depthwise(jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0))), kernel, stride=stride, padding=0)


Group = tuple[str, int, dict[str, float], dict[str, float]]  # what, members, seconds and MiB per member by way


def _depthwise(args: argparse.Namespace) -> Iterator[Group]:
    def both(x: jax.Array, kernel: jax.Array, f: Callable[..., jax.Array], stride: int) -> Any:
        y, vjp = jax.vjp(lambda x, k: f(x, k, stride), x, kernel)
        return y, vjp(y)

    for size, layer, members in itertools.product(args.sizes, LAYERS, args.members):
        side, c = layer.size * size // 32, max(1, int(layer.channels * args.width_factor))
        taps = live_taps(side, layer.window, layer.stride, layer.window // 2)
        x_key, k_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (members, args.batch, side, side, c))
        kernel = jax.random.normal(k_key, (members, layer.window, layer.window, 1, c))
        live = f"{(taps.stop - taps.start) ** 2} of {layer.window**2} taps live"
        ways = {
            name: functools.partial(_jit(functools.partial(both, f=f, stride=layer.stride)), x, kernel)
            for name, f in {"native": _native, "all taps": _all, "live taps": _live}.items()
        }
        what = f"{layer.name}: {layer.window}x{layer.window} stride {layer.stride} on {side}x{side}x{c}, {live}"
        yield what, members, best(ways, args.rounds, 1e-4), {}


class _Weights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def _unfolded(weights: _Weights, z: jax.Array) -> jax.Array:
    matrix = jnp.asarray(pool_matrix(z.shape[1]), z.dtype)
    pooled = jnp.einsum("sh,tw,bhwc->bstc", matrix, matrix, z)
    return pooled.reshape(z.shape[0], -1) @ weights.kernel + weights.bias[None]


def _folded(weights: _Weights, z: jax.Array) -> jax.Array:
    return pool(z) @ weights.kernel + weights.bias[None]


def _linear(args: argparse.Namespace) -> Iterator[Group]:
    out, c = max(1, int(LINEAR * args.width_factor)), max(1, int(CHANNELS * args.width_factor))
    rule = sgd(0.9, 5e-4)

    def step(weights: _Weights, momentum: Any, z: jax.Array, g: jax.Array, f: Callable[..., jax.Array]) -> Any:
        y, vjp = jax.vjp(f, weights, z)
        gradient, dz = vjp(g)
        direction, momentum = rule.update(gradient, momentum, weights)
        return jax.tree.map(lambda p, d: p - 0.01 * d, weights, direction), momentum, (y, dz)

    for size, members in itertools.product(args.sizes, args.members):
        h = size // 32
        full = 0.01 * jax.random.normal(jax.random.key(0), (members, 49 * c, out))
        z = jax.random.normal(jax.random.key(1), (members, args.batch, h, h, c))
        g = jax.random.normal(jax.random.key(2), (members, args.batch, out))
        ways, memory = {}, {}
        for name, f in {"unfolded": _unfolded, "folded": _folded}.items():
            kernel = full if name == "unfolded" else jax.vmap(functools.partial(_fold_kernel, h=h))(full)
            weights = _Weights(kernel, jnp.zeros((members, out)))
            inputs = (weights, jax.vmap(rule.init)(weights), z, g)
            program = _jit(functools.partial(step, f=f)).lower(*inputs).compile()
            used = program.memory_analysis()
            if used is not None:
                total = used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes
                memory[name] = total / members / 2**20
            ways[name] = functools.partial(program, *inputs)
        took = best(ways, args.rounds, 1e-4, lambda result: result[2])
        yield f"pooling of {h}x{h}x{c} to 7x7, linear layer with {out} outputs", members, took, memory


def _fold_kernel(kernel: jax.Array, h: int) -> jax.Array:
    out = kernel.shape[1]
    return fold(kernel.reshape(49, -1, out).transpose(2, 1, 0), h).transpose(2, 1, 0).reshape(-1, out)


def _stamping(args: argparse.Namespace) -> Iterator[Group]:
    for size, (name, factory), members in itertools.product(args.sizes, ATTACKS.items(), args.members):
        dataset = synthetic(args.rows, args.batch, size)
        attack, spec = factory(dataset.spec), dataset.spec
        if attack.batch is not None or not attack.recipe.shared_trigger or attack.prepare is not None:
            continue  # no copies to gather from, or networks to train first
        data, trigger = stage(attack, dataset, root()), attack.init(jax.random.key(0), None)
        keys = jax.random.split(jax.random.key(1), members)
        rows = jax.vmap(lambda key: jax.random.randint(key, (args.batch,), 0, args.rows))(keys)
        hit = jax.random.bernoulli(jax.random.key(2), 0.1, (members, args.batch))
        both = {"in the batch": _stamped_live, "copies": _stamped_before}
        ways = {
            how: functools.partial(
                _jit(functools.partial(f, attack, trigger, spec), (0, 0, 0, None, None)),
                *(rows, hit[:, :, None, None, None], keys, data.train.images, data.triggered),
            )
            for how, f in both.items()
        }
        yield f"{name}, {size} pixels", members, best(ways, args.rounds, 0.0), {}


def _stamped_live(attack, trigger, spec, rows, hit, key, images, copies):
    pixels = to_float(images[rows])
    return crop_flip(key, jnp.where(hit, attack.stamp(trigger, key, pixels), pixels), spec.pad, spec.flip)


def _stamped_before(attack, trigger, spec, rows, hit, key, images, copies):
    return to_float(crop_flip(key, jnp.where(hit, copies[rows], images[rows]), spec.pad, spec.flip))


if __name__ == "__main__":
    main()
