"""Which part of a checkpoint is the network: weights lie under many keys, beside optimisers, settings and other networks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bdjax.data.pickles.numpy_stand_ins import Array
from bdjax.data.pickles.tensors import Odd, Tensor
from bdjax.data.pickles.torch_stand_ins import Inert
from bdjax.errors import UserError, unknown
from bdjax.interop.names import is_network, plain, weights
from bdjax.interop.recognition import likeness, nearest, recognise

_DEEP, _LONG = 5, 16  # containers inside one another, and entries of a list, that are looked into
SHOWN = 8  # keys listed in a message
TENSORS = (Tensor, Array, Odd, np.ndarray)
RESULT = ("model_name", "num_classes", "clean_data", "bd_test")  # what BackdoorBench writes beside "model"


class Part(NamedTuple):
    """A state dict in a file, and where it lies: "" for the whole file, "model.state_dict" for one inside another."""

    key: str
    state: Mapping[str, Any]


def chosen(content: Any, key: str | None = None, model: str | None = None) -> Part:
    """Return the state dict of a file that is the network.

    A file with one network of the table is read whatever its key is. BackdoorBench's results have theirs under "model".

    Args:
      content: what the file holds: containers and the stand-ins of tensors.
      key: of the part that is wanted; None = the one that is a network.
      model: name of the network that is wanted, if any.

    Raises:
      UserError: no state dict, none under this key, or several networks to choose from.
    """
    parts = list(_parts(content))
    if key is not None:
        return _under(key, parts)
    if not parts:
        raise UserError(_nothing(content))
    if isinstance(content, Mapping) and any(name in content for name in RESULT):
        parts = [part for part in parts if part.key == "model"] or parts
    networks = [part for part in parts if is_network(part.state)]
    networks = networks or [inner for part in parts for inner in _inside(part)]
    if model is not None and len(networks) > 1:
        networks = [part for part in networks if _name(part) == model] or networks
    if len(networks) > 1 and not all(_same(networks[0], other) for other in networks[1:]):
        found = "; ".join(f"{part.key or 'the file itself'} ({recognise(weights(plain(part.state)))})" for part in networks)
        raise UserError(f"it holds several networks: {found}; choose one with --key {networks[0].key}")
    if networks:
        return networks[0]
    if len(parts) == 1:
        return parts[0]
    best = max(parts, key=lambda part: likeness(list(weights(plain(part.state)))))
    raise UserError(
        f"none of its parts ({', '.join(part.key or 'the file itself' for part in parts[:SHOWN])}) is a network of the table; of "
        f"{best.key or 'the file itself'}, {nearest(list(weights(plain(best.state))))}; --key names the part that is to be read"
    )


def keys(content: Any) -> list[str]:
    """Return the keys of all state dicts in a file, as ``--key`` takes them."""
    return [part.key for part in _parts(content)]


def _under(key: str, parts: list[Part]) -> Part:
    every = [*parts, *(inner for part in parts for inner in _inside(part, networks=False))]
    found = [part for part in every if part.key == key] or [part for part in parts if part.key.startswith(f"{key}.")]
    if not found:
        names = list(dict.fromkeys(part.key for part in parts if part.key))
        if not names:
            raise UserError(f"it holds no part {key!r}: its tensors lie in the file itself; leave --key out")
        raise unknown("part of the file (--key)", key, names)
    if len(found) > 1:
        raise UserError(f"{key} holds several state dicts: {', '.join(part.key for part in found[:SHOWN])}; name one with --key")
    return found[0]


def _parts(value: Any, key: str = "", deep: int = 0) -> Iterator[Part]:
    """Every state dict in a file; optimisers and what is numbered instead of named are passed over."""
    if deep > _DEEP or (isinstance(value, Mapping) and "param_groups" in value):
        return
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(name, inner) for name, inner in value.items() if isinstance(name, str)]
        tensors = {name: inner for name, inner in items if isinstance(inner, TENSORS)}
        if any(name.endswith("weight") for name in tensors) or (tensors and len(tensors) == len(value)):
            yield Part(key, tensors)
    elif isinstance(value, (list, tuple)) and len(value) <= _LONG:
        items = [(str(at), inner) for at, inner in enumerate(value)]
    for name, inner in items:
        if isinstance(inner, (Mapping, list, tuple)):
            yield from _parts(inner, f"{key}.{name}" if key else name, deep + 1)


def _inside(part: Part, *, networks: bool = True) -> Iterator[Part]:
    """Return the networks that one state dict holds under different first names, as one module made of several gives."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in part.state.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = value
    if len(groups) == 1 and all("." in name for name in part.state):  # a prefix of them all, which `plain` takes off
        return
    for first, state in groups.items():
        if not networks or is_network(state):
            yield Part(f"{part.key}.{first}" if part.key else first, state)


def _name(part: Part) -> str | None:
    found = recognise(weights(plain(part.state)))
    return None if found is None else found.model


def _same(a: Part, b: Part) -> bool:
    return list(a.state) == list(b.state) and all(np.array_equal(array(a.state[n]), array(b.state[n])) for n in a.state)


def array(value: Any) -> np.ndarray:
    """Return a tensor of a file as a NumPy array; raises UserError."""
    return np.asarray(value) if isinstance(value, np.ndarray) else np.asarray(value.array())


def _nothing(content: Any) -> str:
    """Why a file without a state dict holds none."""
    if isinstance(content, Mapping) and not content:
        return "it holds an empty dictionary where a state dict should be"
    if isinstance(content, Mapping) and "param_groups" in content:
        return "it holds the state of an optimiser alone; save the network's: torch.save(network.state_dict(), 'weights.pt')"
    if isinstance(content, Inert):
        return "it holds an object of settings or training, not a state dict"
    if not isinstance(content, (Mapping, list, tuple)):
        return f"it holds a {type(content).__name__.lower()}, not a state dict or a result of BackdoorBench"
    names = [str(name) for name in (content if isinstance(content, Mapping) else range(len(content)))]
    more = ", …" if len(names) > SHOWN else ""
    return (
        f"it holds no state dict, that is no dictionary of named tensors; it is a {type(content).__name__} of "
        f"{', '.join(names[:SHOWN])}{more}; save the weights: torch.save(network.state_dict(), 'weights.pt')"
    )
