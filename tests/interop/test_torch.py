"""PyTorch's files: read without running anything, written as the reference reads them."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from bdjax.data.pickles import torch as pickled
from bdjax.errors import UserError
from bdjax.interop import read, write
from tests.interop.checkpoints import (
    attack_result,
    random_state,
    reduced,
    same_bits,
    stored_as_files,
    stored_in_memory,
    triggered_rows,
)

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model():
    return reduced("cnn")


@pytest.fixture(scope="module")
def state(model):
    return random_state(model)


def tensors(state):
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_plain_state_dict_comes_back(suffix, model, state, tmp_path):
    path = tmp_path / f"net{suffix}"
    write(path, model, state, kind="safetensors" if suffix == ".safetensors" else "state_dict")
    got = read(path)
    assert same_bits({name: got.state[name] for name in state}, state) and len(got.state) == len(state)
    assert got.triggered is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_old_files_and_parameters(state, tmp_path):
    kept = {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in tensors(state).items()}
    torch.save(kept, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert same_bits(read(tmp_path / "a.pt").state, state)


def test_bfloat16_is_widened_and_sparse_tensors_are_refused(tmp_path):
    torch.save({"w": torch.full((2,), 1.5, dtype=torch.bfloat16)}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").state["w"].dtype == np.float32
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="w is not a plain dense tensor"):
        read(tmp_path / "b.pt")


@pytest.mark.parametrize("mode", ["memory", "files"])
@pytest.mark.parametrize("old", [True, False])
def test_an_attack_result(mode, old, model, state, tmp_path):
    """Both ways to store images; NumPy's names before and after version 2."""
    images, path = triggered_rows(), tmp_path / "attack_result.pt"
    stored = stored_in_memory(images) if mode == "memory" else stored_as_files(images, tmp_path)
    told = attack_result(torch, model, {f"module.{k}": v for k, v in state.items()}, stored, "tiny")
    buffer = io.BytesIO()
    torch.save(told, buffer)
    path.write_bytes(renamed(buffer.getvalue()) if old else buffer.getvalue())
    assert (b"numpy.core" in entry(path)) == old
    got = read(path)
    assert (got.model, got.classes, got.image_shape, got.dataset) == ("cnn", 10, (32, 32, 3), "tiny_imagenet")
    assert all(name.startswith("module.") for name in got.state)
    for ours, theirs in zip(got.triggered, images, strict=True):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)
    assert read(path, triggered=False).triggered is None


def entry(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def renamed(data):
    """The same file as NumPy 1 names things."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            archive.writestr(info, source.read(info).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    return target.getvalue()


def test_a_defense_result(model, state, tmp_path):
    torch.save({"model_name": "cnn", "num_classes": 10, "model": tensors(state)}, tmp_path / "defense_result.pt")
    got = read(tmp_path / "defense_result.pt")
    assert (got.model, got.classes, got.dataset, got.image_shape, got.triggered) == ("cnn", 10, None, None, None)
    assert same_bits(got.state, state)


def test_only_images_that_are_marked_and_iterated_count(model, state, tmp_path):
    images = triggered_rows()
    stored = stored_in_memory(images)
    stored["original_index_array"] = np.array([9, 0, 5])
    torch.save(attack_result(torch, model, state, stored), tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").triggered.index.tolist() == [9, 5]
    del stored["bd_data_container"]["data_dict"][5]
    torch.save(attack_result(torch, model, state, stored), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: test image 5 is marked as triggered but not stored"):
        read(tmp_path / "a.pt")


def test_missing_and_broken_image_files(model, state, tmp_path):
    images = triggered_rows()
    torch.save(attack_result(torch, model, state, stored_as_files(images, tmp_path)), tmp_path / "a.pt")
    file = tmp_path / "bd_test_dataset" / "2" / "5.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"test image 5 cannot be read: .*5\.png"):
        read(tmp_path / "a.pt")
    file.unlink()
    with pytest.raises(UserError, match=r"test image 5 is missing: .*5\.png; copy the folder bd_test_dataset beside"):
        read(tmp_path / "a.pt")
    assert read(tmp_path / "a.pt", triggered=False).model == "cnn"


@pytest.mark.parametrize("path", ["../../etc/passwd", "a/../b.png", "b.png", "C:\\x\\b.png"])
def test_image_paths_stay_in_the_folder(path, model, state, tmp_path):
    stored = stored_as_files(triggered_rows(), tmp_path)
    stored["bd_data_container"]["data_dict"][3]["path"] = path
    torch.save(attack_result(torch, model, state, stored), tmp_path / "a.pt")
    with pytest.raises(UserError, match="does not end in folder, class and file"):
        read(tmp_path / "a.pt")


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("where", ["alone", "beside", "tensor"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, rf"{os.system.__module__}\.system"), (eval, "eval"), (open, r"\w*io\.open|open")]
)
def test_code_in_a_file_is_refused_and_not_run(where, form, function, name, model, state, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "attack_result.pt"
    args = {os.system: (f"touch {proof}",), eval: (f"open({str(proof)!r}, 'w')",), open: (str(proof), "w")}[function]
    told = {"alone": Evil(function, *args), "beside": None, "tensor": {"conv1.weight": Evil(function, *args)}}[where]
    if where == "beside":
        told = {**attack_result(torch, model, state, None), "extra": Evil(function, *args)}
    if form == "pickle":
        told = Evil(function, *args) if where == "beside" else told
        path.write_bytes(pickle.dumps(told))
    else:
        torch.save(told, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=rf"asks for the Python object (builtins\.)?({name}): refused, nothing of it was run"):
        read(path)
    assert not proof.exists()


def test_the_malicious_file_is_malicious(tmp_path):
    """Loaded carelessly, it runs."""
    proof = tmp_path / "proof"
    torch.save(Evil(os.system, f"touch {proof}"), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert proof.exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    load = r"torch\.load\('.*a\.pt', map_location='cpu', weights_only=False\)"
    refused = r"Python object torch\.nn\.modules\.linear\.Linear: refused, nothing of it was run; "
    with pytest.raises(UserError, match=rf"{refused}.*torch\.save\({load}\.state_dict\(\), 'weights\.pt'\)"):
        read(tmp_path / "a.pt")
    torch.save({"epoch": 3, "net": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"{refused}.*torch\.save\({load}\['net'\]\.state_dict\(\), .*it holds epoch, net"):
        read(tmp_path / "a.pt")


def test_numpy_objects_are_refused(tmp_path):
    torch.save({"model": {}, "x": np.array([{}], object)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="NumPy array of type 'O8'; only numbers are read"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(share, suffix, model, state, tmp_path):
    path = tmp_path / f"a{suffix}"
    write(path, model, state, kind="safetensors" if suffix == ".safetensors" else "state_dict")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"is truncated, damaged or no (PyTorch checkpoint|safetensors file)"):
        read(path)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_text("hello")
    with pytest.raises(UserError, match="truncated, damaged or no PyTorch checkpoint"):
        read(tmp_path / "a.pt")
    for told, text in (
        ([1, 2], "holds no state dict, .* it is a list of 0, 1; save"),
        (torch.zeros(2), "holds a tensor, not a state dict"),
        ({"epoch": 3, "weights": {}}, "holds no state dict, .* it is a dict of epoch, weights; save"),
        ({}, "holds an empty dictionary where a state dict should be"),
        ({"model": {"w": torch.zeros(1)}, "model_name": 3}, "its model_name is 3, not str"),
        ({"model": {"w": torch.zeros(1)}, "img_size": (3, 0)}, r"its img_size is \(3, 0\)"),
        ({"model": {"w": torch.zeros(1)}, "bd_test": {"x": 1}}, "its stored test set has no 'bd_data_container'"),
    ):
        torch.save(told, tmp_path / "a.pt")
        with pytest.raises(UserError, match=text):
            read(tmp_path / "a.pt")


def test_reading_needs_no_pytorch_and_writing_says_so(model, state, tmp_path, monkeypatch):
    write(tmp_path / "a.pt", model, state)
    write(tmp_path / "a.safetensors", model, state, kind="safetensors")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert same_bits(read(tmp_path / "a.pt").state, state)
    assert len(read(tmp_path / "a.safetensors").state) == len(state)
    with pytest.raises(UserError, match=r"install it with: pip install 'bdjax\[torch\]'"):
        write(tmp_path / "b.pt", model, state)


def test_a_written_attack_result_is_the_references(model, state, tmp_path):
    """Its loader's demands: keys, names of NumPy 1, indexable arrays over the whole test set, images where it looks."""
    images, path = triggered_rows(), tmp_path / "record" / "x" / "attack_result.pt"
    write(path, model, state, kind="attack_result", dataset="tiny_imagenet", triggered=images)
    assert b"numpy._core" not in entry(path) and b"numpy.core.multiarray" in entry(path)
    told = torch.load(path, weights_only=False)
    assert list(told) == [
        *("model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train", "bd_test", "bd_train_all")
    ]
    assert (told["model_name"], told["num_classes"], told["img_size"]) == ("cnn", 10, (32, 32, 3))
    assert (told["clean_data"], told["data_path"], told["bd_train"], told["bd_train_all"]) == ("tiny", "../data/tiny", None, None)
    assert list(told["model"]) == list(state)
    bd = told["bd_test"]
    assert bd["poison_indicator"].shape == (40,) and bd["poison_indicator"].sum() == 5
    assert (bd["getitem_all"], bd["getitem_all_switch"], bd["bd_data_container"]["save_file_format"]) == (True, False, ".png")
    from PIL import Image

    for row, index in enumerate(bd["original_index_array"]):
        stored = bd["bd_data_container"]["data_dict"][index]
        assert stored["path"] == f"{path.parent}/bd_test_dataset/{images.labels[row]}/{index}.png"
        assert stored["other_info"] == [0, images.labels[row]]
        np.testing.assert_array_equal(np.asarray(Image.open(stored["path"])), images.images[row])
    got = read(path)
    assert same_bits(got.state, state) and got.dataset == "tiny_imagenet"
    assert all(np.array_equal(a, b) for a, b in zip(got.triggered, images, strict=True))


def test_what_is_not_written(model, state, tmp_path):
    images = triggered_rows()
    for fields, text in (
        ({"kind": "attack_result"}, "an attack_result needs the triggered test images"),
        ({"triggered": images}, "a state_dict holds no images"),
        ({"kind": "onnx"}, "unknown kind of checkpoint 'onnx'"),
        ({"kind": "safetensors"}, r"ends in \.safetensors"),
        ({"kind": "attack_result", "triggered": images._replace(images=images.images[:, :8])}, r"uint8\[5, 8, 32, 3\], not"),
        ({"kind": "attack_result", "triggered": images._replace(labels=images.labels + 8)}, "true label 13; there are 10"),
        ({"kind": "attack_result", "triggered": images._replace(index=images.index * 0)}, "not 5 different rows"),
    ):
        with pytest.raises(UserError, match=text):
            write(tmp_path / "a.pt", model, state, **fields)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "a.pt", model, state)
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "a.pt", model, state)
    write(tmp_path / "a.pt", model, {**state, "linear.bias": state["linear.bias"] + 1}, overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / "a.pt").state["linear.bias"], state["linear.bias"] + 1)


def test_the_stand_ins_read_numbers_as_numpy_does(tmp_path):
    values = {
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
        "small": np.arange(3, dtype=np.uint8),
    }
    torch.save({**values, np.int64(7): np.float32(1.5)}, tmp_path / "a.pt")
    got = pickled.load_pickled(tmp_path / "a.pt")
    for name, value in values.items():
        np.testing.assert_array_equal(got[name].value, value)
    assert got[7] == 1.5
