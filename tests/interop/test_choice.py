"""Weights come in under the keys, prefixes, protocols and types that people save them with; nothing in a file is run."""

import argparse
import collections
import os
import pathlib
import pickle

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.interop import from_state, read
from bdjax.interop.state import cleaned
from tests.interop.checkpoints import random_state, reduced, same_bits
from tests.interop.test_torch import Evil

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
MODEL = "preactresnet18"
OPTIMISER = {"state": {0: {"step": torch.tensor(1.0), "momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture(scope="module")
def state():
    return random_state(reduced(MODEL))


@pytest.fixture(scope="module")
def tensors(state):
    found = collections.OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state.items())
    found._metadata = collections.OrderedDict({"": {"version": 1}})
    return found


def saved(told, path, **options):
    torch.save(told, path, **options)
    return path


def prefixed(prefix, told):
    return {f"{prefix}{name}": value for name, value in told.items()}


def comes_back(found, state):
    got = cleaned(found.state)
    return len(got) == len(state) and same_bits({name: got[name] for name in state}, state)


WRAPPERS = [
    *("state_dict", "model_state_dict", "model", "net", "netC", "ema", "module", "weights", "params", "classifier", "network"),
    *("backbone", "model.state_dict", "checkpoint.model.net", "whatever"),
]


@pytest.mark.parametrize("key", WRAPPERS)
def test_weights_under_any_key_are_read(key, tensors, state, tmp_path):
    told = tensors
    for name in reversed(key.split(".")):
        told = {"epoch": 199, name: told, "best_acc": 94.1, "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x"))}
    found = read(saved({**told, "optimizer": OPTIMISER, "identity_grid": torch.zeros(1, 8, 8, 2)}, tmp_path / "a.pth.tar"))
    assert found.key == key and found.others == () and comes_back(found, state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "_orig_mod.module.", "module.model.", "model._orig_mod.", "a.b.c."]
)
def test_any_prefix_goes(prefix, tensors, state, tmp_path):
    found = read(saved({"state_dict": prefixed(prefix, tensors)}, tmp_path / "a.ckpt"))
    assert comes_back(found, state)


def test_wrappers_of_parts_of_a_network_go(tensors, state, tmp_path):
    """DataParallel around one stage, torch.compile around another, and an average of weights with its count."""
    renamed = {
        name.replace("layer1.", "layer1.module.").replace("layer2.", "layer2._orig_mod."): value
        for name, value in tensors.items()
    }
    found = read(saved({"n_averaged": torch.tensor(7), **prefixed("module.", renamed)}, tmp_path / "a.pt"))
    assert comes_back(found, state)
    with pytest.raises(UserError, match=r"holds conv1\.weight twice, once with and once without module"):
        cleaned({**state, "module.conv1.weight": state["conv1.weight"]})


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "legacy", "arrays", "plain"])
def test_every_protocol_and_form_is_read(protocol, form, tensors, state, tmp_path):
    path = tmp_path / "a.pt"
    if form in ("zip", "legacy"):
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": form == "zip"}
        saved({"net": tensors, "args": argparse.Namespace(a=1)}, path, **options)
    else:
        path.write_bytes(pickle.dumps(state if form == "arrays" else dict(tensors), protocol))
    assert comes_back(read(path), state)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_protocol_runs_anything(protocol, form, tensors, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "a.pt"
    told = {"net": {} if form == "pickle" else tensors, "extra": Evil(os.system, f"touch {proof}")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(told, protocol))
    else:
        saved(told, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        UserError, match=rf"{os.system.__module__}\.system: refused, nothing of it was run; .*it holds net, extra"
    ):
        read(path)
    assert not proof.exists()


def test_what_lies_beside_the_weights_is_not_run_either(tensors, state, tmp_path):
    """Settings are classes whose making could run code: they are never made."""
    proof = tmp_path / "proof"

    class Namespace(argparse.Namespace):
        def __reduce__(self):
            return argparse.Namespace, (), {"x": 1}

    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 3)
    told = {"net": tensors, "args": Namespace(), "optimizer": scheduler.optimizer, "count": collections.Counter("aab")}
    assert comes_back(read(saved(told, tmp_path / "a.pt")), state) and not proof.exists()


def test_parameters_views_and_other_strides(tensors, state, tmp_path):
    told = {name: torch.nn.Parameter(value) if value.is_floating_point() else value for name, value in tensors.items()}
    told["conv1.weight"] = torch.nn.Parameter(told["conv1.weight"].data.to(memory_format=torch.channels_last))
    told["linear.weight"] = torch.stack([told["linear.weight"].data, told["linear.weight"].data])[1]  # a view of something larger
    for legacy in (False, True):
        found = read(saved(told, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy))
        assert comes_back(found, state)


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16"])
def test_other_precisions_are_read(kind, tensors, tmp_path):
    model = reduced(MODEL)
    wanted = {name: value.to(getattr(torch, kind)) if value.is_floating_point() else value for name, value in tensors.items()}
    got = from_state(model, read(saved(wanted, tmp_path / "a.pt")).state).variables["params"]["linear"]["kernel"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.T, wanted["linear.weight"].float().numpy())
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(prefixed("model.", wanted), tmp_path / "a.safetensors")
    again = from_state(model, read(tmp_path / "a.safetensors").state).variables["params"]["linear"]["kernel"]
    np.testing.assert_array_equal(got, again)


def test_of_several_parts_the_network_is_read(tensors, state, tmp_path):
    """Input-aware's generators beside its classifier; a network and its loss in one module."""
    generator = {"0.weight": torch.zeros(3, 3), "2.bias": torch.zeros(3)}
    told = {"netC": tensors, "netG": generator, "netM": generator, "optimizerC": OPTIMISER}
    found = read(saved(told, tmp_path / "a.pth.tar"))
    assert found.key == "netC" and found.others == ("netG", "netM") and comes_back(found, state)
    whole = {**prefixed("model.", tensors), "criterion.weight": torch.zeros(10), "bias": torch.zeros(1)}
    found = read(saved({"state_dict": whole}, tmp_path / "b.ckpt"))
    assert found.key == "state_dict.model" and comes_back(found, state)


def test_of_several_networks_the_user_chooses(tensors, state, tmp_path):
    average = {name: value + 1 for name, value in tensors.items()}
    path = saved({"net": tensors, "ema": average, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match=r"several networks: net \(preactresnet18 \(.*\)\); ema \(.*\); choose one with --key net"
    ):
        read(path)
    assert comes_back(read(path, key="net"), state)
    np.testing.assert_array_equal(read(path, key="ema").state["linear.bias"], average["linear.bias"])
    with pytest.raises(UserError, match=r"part of the file \(--key\) 'emma'; allowed: net, ema\. Did you mean 'ema'\?"):
        read(path, key="emma")
    assert comes_back(read(saved({"net": tensors, "model": dict(tensors)}, path)), state)  # twice the same is no choice
    small = {name: torch.from_numpy(value) for name, value in random_state(reduced("cnn")).items()}
    path = saved({"student": small, "teacher": {"state_dict": tensors}}, path)
    assert comes_back(read(path, model=MODEL), state) and comes_back(read(path, key="teacher"), state)


def test_a_tensor_that_reaches_beyond_its_data_is_refused(tmp_path):
    class Beyond:
        def __init__(self, *view):
            self.view = view

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.zeros(4).untyped_storage(), *self.view, False, {})

    for view in ((0, (8, 8), (8, 1)), (13, (4,), (1,)), (0, (2,), (-1,)), (0, (1 << 40, 1 << 20), (0, 0))):
        with pytest.raises(UserError, match="w is a tensor"):
            read(saved({"w": Beyond(*view)}, tmp_path / "a.pt"))
