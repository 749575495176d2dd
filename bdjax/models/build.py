"""From a Flax network to the pure functions of ``Model``."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax.errors import UserError, unknown
from bdjax.nn.initial import Drawer
from bdjax.nn.layers import Pass
from bdjax.types import ArchSpec, Array, DataSpec, Key, Model, Output, Variables

STARTS = (None, "features", "head")
# The dtype of activations and convolutions; parameters, momentum, statistics, pooled features, logits and losses stay float32.
# None follows the parameters.
PRECISIONS: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}


def build(
    network: nn.Module,
    *,
    factory: Callable[..., Model],
    arch: ArchSpec,
    spec: DataSpec,
    width: int,
    how: Mapping[str, Any],
    edition: int = 1,
) -> Model:
    """Wrap a network ``network(x, run, start) -> logits f[b k]`` that normalises nothing itself.

    ``Model.apply`` takes images f[b h w c] in [0, 1], standardises them as (x - mean) / std, and runs the network.
    ``Model.rebuild(**fields)`` calls the factory again.

    Args:
      network: Flax module; ``start`` is None, "features" or "head" as in ``Model.apply``, and ``x`` is then images f[b h w c],
        features f[b h' w' d] or the head's input f[b d].
      factory: ``factory(spec, width, **how) -> Model``, the function that calls this one; its name is the network's.
      arch: static addresses of the network.
      spec: the data set, whose mean and std are the first thing the model applies.
      width: channels of its first stage.
      how: the factory's static fields. Every network has

        - norm_eps: added to the variance in its norms,
        - norm_momentum: weight of the new value in their running statistics,
        - dtype: of activations and convolutions; None = that of the parameters; statistics and linear layers: float32 at least,
        - lowering: of its convolutions, see :mod:`bdjax.nn.convolution`,
        - loop: how loops of steps run,

        and ``depth``, blocks per stage that it was cut to, where its factory takes one.
      edition: raised when the results of the network change.
    """

    def shaped(key: Key, mutable: bool) -> Any:
        return network.init(key, jnp.zeros((1, *spec.image_shape)), Pass(shaping=True), None, mutable=mutable)

    def apply(
        variables: Variables,
        images: Array,
        *,
        train: bool = False,
        plug_train: bool = False,
        mask: Array | None = None,
        key: Key | None = None,
        record: tuple[Any, ...] = (),
        start: str | None = None,
    ) -> Output:
        if start not in STARTS:
            raise unknown("start", start, [s for s in STARTS if s])
        run = _pass(variables, record, arch.plug_site, train=train, plug_train=plug_train, mask=mask, key=key)
        x = images if start else _standardise(images, spec, jax.tree.leaves(variables["params"])[0].dtype)
        learned = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
        logits, state = network.apply(learned, x, run, start, mutable=["batch_stats"])
        for address in run.record:
            if address not in run.taps:
                raise unknown("tap address", address, run.seen)
        after = {**variables, "batch_stats": state["batch_stats"] if train else variables["batch_stats"]}
        if plug_train:
            after["plug_stats"] = run.plug_stats
        return Output(logits, after, run.taps)

    def rebuild(**fields: Any) -> Model:
        return factory(spec, width, **{**how, **fields})

    return Model(
        Drawer(shaped),
        apply,
        rebuild,
        spec,
        arch,
        factory.__name__,
        width,
        how["loop"],
        how["norm_eps"],
        how.get("depth"),
        how["norm_momentum"],
        how["dtype"],
        edition,
    )


def _pass(variables: Variables, record: tuple[Any, ...], plug_site: str, **how: Any) -> Pass:
    """Begin a forward pass: what runs, with the bounds and the plug that the variables carry, and what is to be recorded."""
    if how["plug_train"] and variables.get("plug") is None:
        raise UserError("plug_train=True needs variables with a 'plug'")
    return Pass(
        **how,
        record=dict((item, None) if isinstance(item, str) else item for item in record),
        bounds=variables.get("bounds", {}),
        plug=variables.get("plug"),
        plug_stats=variables.get("plug_stats"),
        plug_site=plug_site,
    )


def _standardise(images: Array, spec: DataSpec, dtype: Any) -> Array:
    """(x - mean) / std per channel, f[b h w c] -> f[b h w c] of ``dtype``."""
    shape = (1, 1, 1, len(spec.mean))
    mean, std = jnp.asarray(spec.mean, dtype).reshape(shape), jnp.asarray(spec.std, dtype).reshape(shape)
    return (images.astype(dtype) - mean) / std


def shapes(model: Model) -> Any:
    """Return the variables of a network as shapes and dtypes, computing nothing."""
    return model.init.shapes() if isinstance(model.init, Drawer) else jax.eval_shape(model.init, jax.random.key(0))
