"""The addresses of a network, read off a traced pass: what its author need not write down."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.nn.layers import Pass
from bdjax.types import ArchSpec, DataSpec

READ_OFF = ("registered", "norms", "feeds", "heads", "stages", "plug_site", "activations")


class _Call(NamedTuple):
    """A call of a module."""

    address: str
    given: Any  # its first argument
    returned: Any
    behind: bool  # after the pass went by the address "head"


def described(network: nn.Module, spec: DataSpec, arch: ArchSpec) -> ArchSpec:
    """Return the addresses of a network, with those that ``arch`` leaves empty read off a traced pass.

    A convolution or a norm has an address where the pass taps its output under the path of its module, as the layers of
    :mod:`bdjax.nn.layers` do, and they are registered in the order in which they run. A norm is fed by the convolution whose
    output is its input, with nothing in between. Linear layers behind the address "head" are the heads, the addresses that begin
    with "stage" the stages. A plug goes to "features".

    Args:
      network: as :func:`bdjax.models.build.build` takes it.
      spec: the data set.
      arch: what is known; it wins.
    """
    missing = [field for field in READ_OFF if not getattr(arch, field)]
    if not missing:
        return arch
    found = _read_off(network, spec)
    return arch._replace(**{field: getattr(found, field) for field in missing})


@functools.lru_cache(maxsize=128)
def _read_off(network: nn.Module, spec: DataSpec) -> ArchSpec:
    calls, run, kinds = _traced(network, spec)
    tapped = dict.fromkeys(run.seen)
    registered, feeds, heads, convs = [], [], [], []
    for call in calls:
        kind = kinds.get(call.address, "")
        if kind == "linear" and call.behind:
            heads.append(call.address)
        elif kind == "conv" and call.address in tapped:
            registered.append((kind, call.address))
            convs.append(call)
        elif kind == "norm" and {call.address, f"{call.address}/in"} <= tapped.keys():
            registered.append((kind, call.address))
            feeds += [(call.address, conv.address) for conv in convs if conv.returned is call.given]
    norms = tuple(dict.fromkeys(address for kind, address in registered if kind == "norm"))
    return ArchSpec(
        registered=tuple(dict.fromkeys(registered)),
        norms=norms,
        feeds=tuple(dict(feeds).items()),
        heads=tuple(dict.fromkeys(heads)),
        stages=tuple(address for address in tapped if address.startswith("stage")),
        plug_site="features" if getattr(run.taps.get("features"), "ndim", 0) == 4 else "",
        activations=tuple(f"{norm}/act" for norm in norms if f"{norm}/act" in tapped),
    )


def _traced(network: nn.Module, spec: DataSpec) -> tuple[list[_Call], Pass, dict[str, str]]:
    """Trace a pass in evaluation mode: the calls of modules in their order, the state of the pass, {address: kind of layer}."""
    calls: list[_Call] = []
    run = Pass(record={"features": None})

    def watch(following: Any, arguments: Any, named: Any, context: Any) -> Any:
        returned = following(*arguments, **named)
        if context.method_name == "__call__":
            address = "/".join(context.module.path)
            calls.append(_Call(address, arguments[0] if arguments else None, returned, "head" in run.seen))
        return returned

    images = jnp.zeros((1, *spec.image_shape))
    with nn.intercept_methods(watch):
        variables = jax.eval_shape(lambda key: network.init(key, images, run, None, mutable=True), jax.random.key(0))
    return calls, run, _kinds(variables)


def _kinds(variables: Mapping[str, Any]) -> dict[str, str]:
    """Return which modules are a "conv", a "norm" or a "linear" layer, by the names and axes of what they learn."""
    learned: dict[str, dict[str, Any]] = {}
    for part in ("params", "batch_stats"):
        for path, leaf in tree.flatten(variables.get(part, {})).items():
            address, _, name = path.rpartition("/")
            learned.setdefault(address, {})[name] = leaf
    found = {}
    for address, leaves in learned.items():
        axes = getattr(leaves.get("kernel"), "ndim", 0)
        if {"scale", "bias", "mean", "var"} <= leaves.keys():
            found[address] = "norm"
        elif axes in (2, 4):
            found[address] = "conv" if axes == 4 else "linear"
    return found
