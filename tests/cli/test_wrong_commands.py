"""Wrong files, places and machines: every command answers with one line and a code that is not 0, and without a traceback."""

import collections
import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bdjax.cli import complaints
from bdjax.cli import main as cli
from bdjax.population import platforms
from bdjax.store import atomic, records
from tests.interop.checkpoints import random_state, reduced, spec


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("BDJAX_DATA_DIR", "BDJAX_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def answer(capsys, *arguments):
    """Exit code and the one line of a command that does not end well."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    lines = told.err.strip("\n").split("\n")
    assert code not in (0, None) and len(lines) == 1 and lines[0].startswith("bdjax: error: "), told.err
    assert "Traceback" not in told.err and told.out == ""
    return code, lines[0].removeprefix("bdjax: error: ")


# Checkpoints. A state dict of NumPy arrays stands for one of tensors: both are read the same way.


def state(classes=10, name="cnn", size=16):
    return random_state(reduced(name, classes, size))


def without(name):
    return {key: value for key, value in state().items() if key != name}


class Asking:
    """A pickle that asks for a function to be called."""

    def __reduce__(self):
        return os.system, ("touch proof",)


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/"), data)


def truncated(data, share):
    return data[: int(share * len(data))]


def resnet():
    """Names as torchvision's ResNet-18 has them."""
    layers = [f"layer{i}.{j}.{kind}{k}" for i in (1, 2, 3, 4) for j in (0, 1) for kind in ("conv", "bn") for k in (1, 2)]
    return {f"{name}.weight": np.ones((4, 4), np.float32) for name in ("conv1", "bn1", *layers, "fc")}


OPTIMISER = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
CHECKPOINTS = {
    "text": (lambda path: path.write_text("hello\n"), "truncated, damaged or no PyTorch checkpoint"),
    "nothing in it": (lambda path: path.write_bytes(b""), "(0 bytes) is truncated, damaged or no PyTorch checkpoint"),
    "a folder": (
        lambda path: (path / "net.pth").mkdir(parents=True),
        "is a folder; name the checkpoint file in it (it holds net.pth)",
    ),
    "no file": (lambda path: None, "there is no file"),
    "half a pickle": (lambda path: path.write_bytes(truncated(pickle.dumps(state()), 0.5)), "truncated, damaged"),
    "half a zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)), "truncated, damaged"),
    "another zip": (lambda path: zipped(path, a="1", b="2"), "a zip archive, but no PyTorch checkpoint: a, b"),
    "no pickle in the zip": (lambda path: zipped(path, a__data="x", **{"a__data.pkl": "hello"}), "truncated, damaged"),
    "TorchScript": (lambda path: zipped(path, **{"a__data.pkl": "", "a__constants.pkl": ""}), "torch.jit.load("),
    "tensors without data": (
        lambda path: zipped(path, **{"a__data.pkl": referring()}),
        "holds a tensor whose data a/data/7 are missing",
    ),
    "code": (lambda path: path.write_bytes(pickle.dumps({"net": Asking()})), "system: refused, nothing of it was run"),
    "a class": (lambda path: path.write_bytes(pickle.dumps({"net": spec()})), "DataSpec: refused, nothing of it was run"),
    "objects": (
        lambda path: path.write_bytes(pickle.dumps({"w": np.array([{}], object)})),
        "NumPy array of type 'O8'; only numbers",
    ),
    "an empty dictionary": (lambda path: dump(path, {}), "holds an empty dictionary where a state dict should be"),
    "an optimiser": (lambda path: dump(path, OPTIMISER), "the state of an optimiser alone; save the network's"),
    "settings": (lambda path: dump(path, {"epoch": 3, "lr": 0.1}), "it is a dict of epoch, lr; save the weights: torch.save("),
    "a list": (lambda path: dump(path, [1, 2]), "holds no state dict"),
    "a number": (lambda path: dump(path, 3), "holds a int, not a state dict"),
    "another network": (
        lambda path: dump(path, {"state_dict": resnet()}),
        "are those of no network of the table: cnn, preactresnet18, vgg19_bn, efficientnet_b3, mobilenet_v3_large; "
        "the nearest is preactresnet18",
    ),
    "no network": (lambda path: dump(path, {"a.weight": np.ones((2, 2), np.float32)}), "none has a layer in common with it"),
    "several of no use": (
        lambda path: dump(path, {"netG": {"0.weight": np.ones(2)}, "netM": {"0.weight": np.ones(2)}}),
        "none of its parts (netG, netM) is a network of the table",
    ),
    "two networks": (
        lambda path: dump(path, {"net": state(), "ema": {name: value + 1 for name, value in state().items()}}),
        "choose one with --key net",
    ),
    "other classes": (lambda path: dump(path, state(43)), "the file has 43 classes (linear.weight [43, 16]), the model 10"),
    "a tensor too few": (lambda path: dump(path, without("linear.bias")), "linear.bias [10] is missing"),
    "a layer too few": (lambda path: dump(path, without("bn1.weight")), "bn1.weight [4] is missing"),
    "a tensor too many": (
        lambda path: dump(path, {**state(), "bn1.scale": np.ones(4, np.float32)}),
        "bn1.scale [4] is unexpected",
    ),
    "another shape": (
        lambda path: dump(path, {**state(), "linear.bias": np.ones(9, np.float32)}),
        "linear.bias is [9], not [10]",
    ),
    "NaN": (
        lambda path: dump(path, {**state(), "linear.bias": np.full(10, np.nan, np.float32)}),
        "linear.bias has 10 NaN or infinite values of 10: the network has diverged",
    ),
    "integers": (lambda path: dump(path, {**state(), "linear.bias": np.ones(10, np.int32)}), "linear.bias is int32"),
    "two names": (
        lambda path: dump(path, {**state(), "module.linear.bias": np.ones(10, np.float32)}),
        "holds linear.bias twice",
    ),
}
FLAGGED = {
    "an unknown key": (
        {"net": "state"},
        ["--key", "nett"],
        "unknown part of the file (--key) 'nett'; allowed: net. Did you mean",
    ),
    "a key of none": ("state", ["--key", "net"], "its tensors lie in the file itself; leave --key out"),
    "an unknown network": ("state", ["--model", "resnet"], "Did you mean 'preactresnet18'?"),
    "the wrong network": ("state", ["--model", "preactresnet18"], "the file holds cnn (width 4, 10 classes), not preact"),
    "a file for the folder": ("state", ["--out", __file__], "exists already"),
    "a place where nothing is written": ("state", ["--out", "/dev/null/in"], "cannot write /dev/null/in: File exists"),
    "no ratio": ("state", ["--poison-ratio", "1.5"], "the poison ratio lies in [0, 1]"),
}


def dump(path, told):
    path.write_bytes(pickle.dumps(told))


def referring():
    """The pickle of a tensor whose data are nowhere, by hand."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(K\x04t(K\x01t\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_wrong_checkpoint_is_one_line(capsys, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make, message = CHECKPOINTS[kind]
    make(tmp_path / "net.pt")
    code, line = answer(
        capsys, "import-torch", tmp_path / "net.pt", "--dataset", "digits", "--poison-ratio", "0.1", "--out", "in"
    )
    assert code == 2 and message in line and str(tmp_path / "net.pt") in line
    assert not (tmp_path / "in").exists() and not (tmp_path / "proof").exists()


@pytest.mark.parametrize("kind", FLAGGED)
def test_a_wrong_flag_for_a_checkpoint_is_one_line(capsys, tmp_path, kind):
    told, flags, message = FLAGGED[kind]
    dump(tmp_path / "net.pt", state() if told == "state" else {name: state() for name in told})
    flags = [*flags, *([] if "--out" in flags else ["--out", str(tmp_path / "in")])]
    flags += [] if "--poison-ratio" in flags else ["--poison-ratio", "0.1"]
    code, line = answer(capsys, "import-torch", tmp_path / "net.pt", "--dataset", "digits", *flags)
    assert code == 2 and message in line and not (tmp_path / "in").exists()


def test_a_damaged_safetensors_file_is_one_line(capsys, tmp_path):
    pytest.importorskip("safetensors")
    flags = ["--dataset", "digits", "--poison-ratio", "0.1", "--out", tmp_path / "in"]
    odd = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    for data, message in (
        (b"hello", "truncated, damaged or no safetensors file"),
        (struct.pack("<Q", len(odd)) + odd + b"x", "w is of type F8_E4M3; read are F64, F32"),
    ):
        (tmp_path / "a.safetensors").write_bytes(data)
        assert message in answer(capsys, "import-torch", tmp_path / "a.safetensors", *flags)[1]


def test_weights_under_a_key_are_imported_by_the_command_and_it_says_which(capsys, tmp_path):
    told = collections.OrderedDict(net=state(), ema={name: value + 1 for name, value in state().items()}, epoch=3)
    dump(tmp_path / "net.pt", told)
    flags = ["--dataset", "digits", "--poison-ratio", "0.1", "--out", str(tmp_path / "in")]
    assert cli.main(["import-torch", str(tmp_path / "net.pt"), *flags, "--key", "ema"]) == 0
    assert f"{tmp_path / 'net.pt'}: read ema; the file also holds net" in capsys.readouterr().out
    double = {name: value.astype(np.float64) if value.ndim else value for name, value in state().items()}
    dump(tmp_path / "net.pt", double)
    assert cli.main(["import-torch", str(tmp_path / "net.pt"), *flags, "--overwrite"]) == 0
    assert "tensors of float64 are rounded to float32" in capsys.readouterr().out


# Places.

QUICK = ["--width", "4", "--train-images", "100", "--test-images", "50", "--epochs", "1"]
PLACES = {
    "a file": ([__file__], "is a file, and results need a folder; choose another --out"),
    "below a file": ([f"{__file__}/out"], "Not a directory; choose another --out"),
    "a system's folder": (["/proc/out"], "cannot write /proc/out: No such file or directory; choose another --out"),
    "not UTF-8": (["out\udcff"], "the name of the folder of results 'out\\udcff' is not UTF-8"),
    "no name": ([""], "the name of the folder of results is empty"),
    "two lines": ([f"{__file__}/a\nb"], "Not a directory"),
    "too long": (["x" * 300], "File name too long; choose another --out"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_place_where_nothing_can_be_written_is_one_line(capsys, tmp_path, monkeypatch, command, place):
    monkeypatch.chdir(tmp_path)
    (out,), message = PLACES[place]
    code, line = answer(capsys, command, *QUICK, "--out", out)
    assert code == 2 and message in line


@pytest.mark.parametrize("command", ["status", "report", "cite", "reproduce"])
@pytest.mark.parametrize("out", ["out\udcff", "", __file__, "/nowhere/at\nall"])
def test_a_place_without_results_is_one_line(capsys, command, out):
    assert answer(capsys, command, out)[0] == 2


@pytest.mark.parametrize("flags", [["--attack", "{file}:mine"], ["--defense", "{file}:mine"]])
def test_a_users_file_whose_path_is_no_text_is_one_line(capsys, tmp_path, flags):
    """JAX writes the path of every function into what it compiles, and fails without a word."""
    (tmp_path / "m\udcff.py").write_text("def mine(*_, **__):\n    return None\n")
    flags = [flag.format(file=tmp_path / "m\udcff.py") for flag in flags]
    code, line = answer(capsys, "check", *QUICK, *flags, "--out", tmp_path / "out")
    assert code == 2 and "is not UTF-8, and JAX compiles nothing from there; rename it" in line


def test_a_full_disk_while_a_record_is_written_is_one_line(capsys, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    monkeypatch.setattr(cli, "_command", lambda arguments: records.write_rows(tmp_path, "cell", "members", []))
    code, line = answer(capsys, "run")
    assert code == 2 and "No space left on device; free some space or choose another --out; the same command goes on" in line
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_picture_that_cannot_be_written_is_one_line(capsys):
    code, line = answer(capsys, "show-attack", "badnets", "--out", "/dev/null/a.png")
    assert code == 2 and "cannot write /dev/null/a.png: File exists" in line


@pytest.mark.parametrize("place", ["/dev/null/x", __file__])
def test_a_cache_that_cannot_be_written_is_no_obstacle(capsys, tmp_path, monkeypatch, place):
    """`check` and `run` keep nothing then, and say which variable to set; what is only there to be kept is refused."""
    monkeypatch.setenv("BDJAX_CACHE_DIR", place)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert cli.main(["check", *QUICK, "--out", str(tmp_path / "out")]) == 0
        told = capsys.readouterr().err.strip().splitlines()
        assert told == [
            f"bdjax: warning: compiled programs are not kept: cannot write {place}/compiled: Not a directory; "
            "set BDJAX_CACHE_DIR to a folder with room"
        ]
        assert cli.main(["plan", *QUICK]) == 2
        assert f"cannot write to the cache folder {place}/tuned: Not a directory; set BDJAX_CACHE_DIR" in capsys.readouterr().err
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_user_without_a_home_is_told_the_variable(monkeypatch):
    from bdjax.data import cache
    from bdjax.errors import UserError

    for name in ("BDJAX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(UserError, match="no home folder for the cache; set BDJAX_CACHE_DIR"):
        cache.cache_root()


# Machines. What JAX says, by version 0.10, of platforms that it cannot start.

STARTS = "Unable to initialize backend"
PLATFORMS = {
    "no plug-in": (
        "rocm",
        f"{STARTS} 'rocm': Backend 'rocm' is not in the list of known backends: ['cpu', 'tpu']. (set JAX_PLATFORMS='' to "
        "automatically choose an available backend)",
        "JAX cannot start rocm, which JAX_PLATFORMS asks for: this JAX has no plug-in for it; install AMD's",
    ),
    "an alias": ("gpu", f"{STARTS} 'rocm': Backend 'rocm' is not in the list of known backends: []", 'pip install "jax[cuda13]"'),
    "misspelt": ("cdua", f"{STARTS} 'cdua': Backend 'cdua' is not in the list of known backends: []", "did you mean 'cuda'?"),
    "no GPU": ("cuda", None, "no such device is visible to this process, or its driver is missing; see what nvidia-smi says"),
    "no driver": (
        "cuda",
        f"{STARTS} 'cuda': INTERNAL: no supported devices found for platform CUDA (set JAX_PLATFORMS='' to automatically "
        "choose an available backend)",
        "INTERNAL: no supported devices found for platform CUDA; see what nvidia-smi says, and CUDA_VISIBLE_DEVICES, or compute",
    ),
    "no libtpu": (
        "tpu",
        f"{STARTS} 'tpu': INTERNAL: Failed to open libtpu.so: libtpu.so: cannot open shared object file",
        "libtpu, its library, is not installed; on a TPU machine, install it",
    ),
    "a TPU that is held": (
        "",
        f"{STARTS} 'tpu': ABORTED: The TPU is already in use by process with pid 4242. Not attempting to load libtpu.so in this "
        "process. (you may need to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip this backend.)",
        "JAX cannot start tpu: ABORTED: The TPU is already in use by process with pid 4242. Not attempting to load libtpu.so in "
        "this process; wait for the process that holds it or end that process, or compute on the CPU: JAX_PLATFORMS=cpu bdjax",
    ),
    "another reason": ("cuda", f"{STARTS} 'cuda': INTERNAL:\nCUDA error 999", "INTERNAL: CUDA error 999; see that its driver"),
}


@pytest.mark.parametrize("kind", PLATFORMS)
@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_a_platform_that_does_not_start_is_one_line(capsys, tmp_path, monkeypatch, command, kind):
    asked, told, message = PLATFORMS[kind]

    def start(*_, **__):
        raise AssertionError if told is None else RuntimeError(told)

    monkeypatch.setenv("JAX_PLATFORMS", asked)
    for name in ("local_devices", "devices", "default_backend"):
        monkeypatch.setattr(jax, name, start)
    code, line = answer(capsys, command, *QUICK, *([] if command == "plan" else ["--out", tmp_path / "out"]))
    assert code == 2 and message in line and line.endswith("or compute on the CPU: JAX_PLATFORMS=cpu bdjax …")


def test_other_errors_are_not_taken_for_a_platform():
    for error in (RuntimeError("no"), AssertionError(), KeyError("Unable to initialize backend 'x'")):
        assert platforms.trouble(error) is None


def test_a_misspelt_platform_is_one_line_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "bdjax.cli.main", "check", *QUICK, "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cdua"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "JAX cannot start cdua, which JAX_PLATFORMS asks for: there is no such platform; did you mean 'cuda'?" in done.stderr


# Errors nobody foresaw.


def test_an_error_of_a_users_file_names_file_and_line(capsys, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("def mine(spec, config=None, *, profile):\n    return spec.nothing_of_the_kind\n")
    command = ["check", *QUICK, "--attack", f"{file}:mine", "--out", tmp_path / "out"]
    code, line = answer(capsys, *command)
    assert code != 0 and f"{file}" in line and "nothing_of_the_kind" in line


def test_an_unforeseen_error_is_one_line_and_debugging_shows_its_traceback(capsys, monkeypatch):
    def broken(arguments):
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(cli, "_command", broken)
    code, line = answer(capsys, "run")
    assert code == 70 and "BDJAX_DEBUG=1 shows the traceback" in line
    assert line.startswith(r"KeyError: 'first line\nsecond line' (") and f"{__file__}:" in line and "in broken)" in line
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("BDJAX_DEBUG", value)
        assert cli.main(["run"]) == 70
        assert ("Traceback (most recent call last)" in capsys.readouterr().err) == shown


def test_debugging_shows_the_traceback_of_a_users_mistake_too(capsys, monkeypatch):
    monkeypatch.setenv("BDJAX_DEBUG", "1")
    assert cli.main(["run", "--dataset", "didgits"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and told.splitlines()[-1].endswith(
        "Did you mean 'digits'? A data set may also be the path of a folder; this is none."
    )


def test_what_jax_logs_is_one_line(capsys, caplog, monkeypatch):
    """A plug-in of JAX that breaks while it is loaded logs a traceback."""
    import logging

    logger = logging.getLogger("jax._src.xla_bridge")

    def loads():
        try:
            raise RuntimeError("Unable to load cuPTI.\nIs it installed?")
        except RuntimeError:
            logger.exception("Jax plugin configuration error: %s", "cuda")

    with complaints.one_line_each():
        loads()
    (record,) = caplog.records
    assert record.getMessage() == "Jax plugin configuration error: cuda: RuntimeError: Unable to load cuPTI."
    assert record.exc_info is None and not logger.filters
    caplog.clear()
    monkeypatch.setenv("BDJAX_DEBUG", "1")
    with complaints.one_line_each():
        loads()
    assert caplog.records[0].exc_info is not None
