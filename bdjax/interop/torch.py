"""Files of PyTorch and BackdoorBench: ``attack_result.pt``, ``defense_result.pt``, checkpoints, state dicts, safetensors.

Reading needs no PyTorch (:mod:`bdjax.data.pickles.torch`), writing does; safetensors files need the safetensors library alone.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.data.pickles.numpy_stand_ins import Array
from bdjax.data.pickles.tensors import BFLOAT16, decoded
from bdjax.data.pickles.torch import load_pickled
from bdjax.errors import UserError, choose
from bdjax.interop.attack_images import FOLDER, read_images, write_images
from bdjax.interop.checkpoint import Checkpoint, Triggered, check_triggered
from bdjax.interop.choice import array, chosen, keys
from bdjax.interop.old_numpy import PICKLE, PROTOCOL
from bdjax.store.files import refuse_existing, replacing
from bdjax.types import Model

KINDS = ("state_dict", "attack_result", "defense_result", "safetensors")
_SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": BFLOAT16, "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"}
_SAFETENSORS |= {"U8": "u1", "BOOL": "?"}
_THEIR_DATASETS = {"tiny": "tiny_imagenet"}
_OUR_DATASETS = {ours: theirs for theirs, ours in _THEIR_DATASETS.items()}


def torch_module() -> Any:
    """Import PyTorch; raises UserError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise UserError("writing PyTorch files needs PyTorch; install it with: pip install 'bdjax[torch]'") from None
    return torch


def read(path: str | Path, *, triggered: bool = True, key: str | None = None, model: str | None = None) -> Checkpoint:
    """Read a checkpoint; nothing in it is run.

    Args:
      path: ``attack_result.pt`` or ``defense_result.pt`` of BackdoorBench, a plain state dict or a training checkpoint that
        holds one (``.pt``, ``.pth``, ``.ckpt``, a pickle), or ``.safetensors``.
      triggered: read the stored triggered test images too, if there are any.
      key: of the state dict in the file, "netC" or "model.state_dict"; None: the one that is a network.
      model: name of the network that is wanted, where the file holds several.

    Returns:
      Its tensors as NumPy arrays and what it says about itself.

    Raises:
      UserError: no such file, a truncated one, one that is no checkpoint or that asks for a Python object other than tensors,
        numbers, arrays and images; no network, several, or none under the key; a missing image file; a missing library.
    """
    path = Path(path)
    if path.is_dir():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:6])
        raise UserError(f"{path} is a folder; name the checkpoint file in it (it holds {inside or 'nothing'})")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, key, model)
    content = load_pickled(path)
    try:
        part = chosen(content, key, model)
        state, others = _state(part.state), tuple(other for other in keys(content) if not f"{part.key}.".startswith(f"{other}."))
        if not isinstance(content, Mapping) or part.key != "model":
            return Checkpoint(state, key=part.key, others=others)
        stored = content.get("bd_test") if triggered else None
        return Checkpoint(
            state,
            _fact(content, "model_name", str),
            _fact(content, "num_classes", int),
            _image_shape(content.get("img_size")),
            _dataset(_fact(content, "clean_data", str)),
            None if stored is None else read_images(stored, path.parent),
            part.key,
            others,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _state(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for name, value in tensors.items():
        try:
            found[name] = array(value)
        except UserError as error:
            raise UserError(f"{name} is {error}") from None
    return found


def _fact(content: Mapping[str, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if value is not None and not isinstance(value, kind):
        raise UserError(f"its {name} is {value!r}, not {kind.__name__}")
    return value


def _image_shape(value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    sizes = value.value.tolist() if isinstance(value, Array) else value
    if not isinstance(sizes, (tuple, list)) or len(sizes) != 3 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise UserError(f"its img_size is {sizes!r}, not (height, width, channels)")
    return (sizes[0], sizes[1], sizes[2])


def _dataset(name: str | None) -> str | None:
    return None if name is None else _THEIR_DATASETS.get(name, name)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError("safetensors files need the safetensors library; install it with: pip install 'bdjax[torch]'") from None
    return safetensors


def _read_safetensors(path: Path, key: str | None, model: str | None) -> Checkpoint:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        entries = dict(library.deserialize(path.read_bytes()))
    except Exception as error:  # the library's own
        raise UserError(f"{path} is truncated, damaged or no safetensors file: {error}") from None
    tensors = {}
    for name, facts in entries.items():
        code = _SAFETENSORS.get(facts["dtype"])
        if code is None:
            raise UserError(f"{path}: {name} is of type {facts['dtype']}; read are {', '.join(_SAFETENSORS)}")
        tensors[name] = decoded(bytes(facts["data"]), code).reshape(facts["shape"])
    try:
        part = chosen(tensors, key, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Checkpoint(_state(part.state), model=metadata.get("model"), dataset=metadata.get("dataset"), key=part.key)


def write(
    path: str | Path,
    model: Model,
    state: Mapping[str, np.ndarray],
    *,
    kind: str = "state_dict",
    dataset: str | None = None,
    triggered: Triggered | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint; it appears complete or not at all.

    Args:
      path: the file.
      model: the network, for its name, classes and image size.
      state: of :func:`bdjax.interop.state.to_state`, in its order.
      kind: "state_dict" for ``load_state_dict``, "safetensors", or BackdoorBench's "defense_result" (the state dict with the
        network's name and classes) and "attack_result", whose loader wants "record" in the path of the file, and its data
        beside that folder in ``data/<name>``.
      dataset: name of the data set; None: the model's.
      triggered: the triggered test images, which "attack_result" needs. They become PNG files in ``bd_test_dataset`` beside the
        file, and their absolute paths go into it.
      overwrite: replace a file, and a folder of images, that exist.

    Raises:
      UserError: the file exists, cannot be written, a library is missing, or images are missing or do not fit.
    """
    path, name = Path(path), dataset or model.spec.name
    choose("kind of checkpoint", kind, KINDS)
    refuse_existing(path, overwrite)
    if (path.suffix == ".safetensors") != (kind == "safetensors"):
        raise UserError(
            f"the name of a safetensors file ends in .safetensors and no other's does; given {path.name} for a {kind}"
        )
    if (triggered is not None) != (kind == "attack_result"):
        raise UserError("an attack_result needs the triggered test images" if triggered is None else f"a {kind} holds no images")
    if kind == "safetensors":
        data = _safetensors().numpy.save(dict(state), metadata={"format": "pt", "model": model.name, "dataset": name})
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        return
    tensors = {key: torch_module().from_numpy(np.array(value)) for key, value in state.items()}
    network = {"model_name": model.name, "num_classes": model.spec.classes, "model": tensors}
    if triggered is not None:
        _write_attack_result(path, model, network, _OUR_DATASETS.get(name, name), triggered, overwrite)
        return
    with replacing(path) as temporary:
        torch_module().save(network if kind == "defense_result" else tensors, temporary)


def _write_attack_result(
    path: Path, model: Model, network: Mapping[str, Any], dataset: str, triggered: Triggered, overwrite: bool
) -> None:
    """Write an attack_result: the network, and the triggered images in a folder beside the file."""
    check_triggered(triggered, model.spec.image_shape, model.spec.classes)
    folder = path.parent.absolute() / FOLDER
    refuse_existing(folder, overwrite)
    with contextlib.ExitStack() as stack:
        file, images = stack.enter_context(replacing(path)), stack.enter_context(replacing(folder))  # the file appears last
        result = {
            **network,
            "data_path": f"../data/{dataset}",
            "img_size": tuple(model.spec.image_shape),
            "clean_data": dataset,
            "bd_train": None,
            "bd_test": write_images(triggered, images, folder),
            "bd_train_all": None,
        }
        torch_module().save(result, file, pickle_module=PICKLE, pickle_protocol=PROTOCOL)
