"""The names of a state dict as the network itself has them: without what wrappers put before or between them."""

from collections.abc import Mapping
from typing import Any

from bdjax.errors import UserError
from bdjax.interop.recognition import likeness, recognise

WRAPPERS = ("module", "_orig_mod")  # DataParallel and its kin, also around a part of the network; torch.compile
NOT_WEIGHTS = ("neuron_mask", "neuron_noise", "neuron_noise_bias")  # of norms that a pruning defense has replaced
_AVERAGED = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict under the names of its network.

    ``module.`` and ``_orig_mod.`` go wherever they stand. A prefix that all names share, such as Lightning's ``model.``, goes
    where that makes them the names of a network of the table, or more like one.

    Args:
      state: {name: anything}; masks of norms keep their names.

    Raises:
      UserError: two tensors would have one name.
    """
    found: dict[str, Any] = {}
    for name, value in state.items():
        if name == _AVERAGED:
            continue
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in found:
            raise UserError(f"it holds {short} twice, once with and once without {' or '.join(WRAPPERS)} in its name")
        found[short] = value
    best, best_likeness = found, _likeness(found)
    while best_likeness < 1 and (shorter := _without_prefix(found)) is not None:
        found, like = shorter, _likeness(shorter)
        if like > best_likeness:
            best, best_likeness = found, like
    return best


def weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a state dict that are a network's own, without masks and noise of norms."""
    return {name: value for name, value in state.items() if name.rpartition(".")[2] not in NOT_WEIGHTS}


def is_network(state: Mapping[str, Any]) -> bool:
    """Return whether these are, but for prefixes, the modules of a network of the table."""
    return recognise(weights(plain(state))) is not None


def _likeness(state: Mapping[str, Any]) -> float:
    return likeness(list(weights(state)))


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any] | None:
    firsts = {name.partition(".")[0] for name in state}
    if len(firsts) != 1 or not all("." in name for name in state):
        return None
    return {name.partition(".")[2]: value for name, value in state.items()}
