"""State dicts of random numbers, and files shaped like BackdoorBench's, for the tests of the door to PyTorch."""

import functools

import numpy as np

from bdjax.interop import Triggered
from bdjax.interop.layout import layout
from bdjax.models import MODELS
from bdjax.types import DataSpec

WIDTHS = {"cnn": 4, "preactresnet18": 4, "vgg19_bn": 4, "efficientnet_b3": 8, "mobilenet_v3_large": 8}


def spec(classes=10, size=32):
    return DataSpec("cifar10", (size, size, 3), classes, (0.5,) * 3, (0.25,) * 3, True, 4)


@functools.cache  # a network traces itself once
def reduced(name, classes=10, size=32, **fields):
    return MODELS[name](spec(classes, size), WIDTHS[name], **fields)


def random_state(model, seed=0, norms=True):
    """{name: tensor} with variances above 0, as NumPy arrays; some weights are -0.0."""
    generator, state = np.random.default_rng(seed), {}
    for tensor in layout(model):
        if tensor.kind == "count":
            state[tensor.name] = np.asarray(generator.integers(1, 40_000), np.int64)
            continue
        value = generator.standard_normal(tensor.shape, np.float32) / float(max(1, np.prod(tensor.shape[1:]))) ** 0.5
        if tensor.name.endswith("running_var") or (tensor.path.endswith("scale") and norms):
            value = generator.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
        value.reshape(-1)[::7] *= np.float32(-0.0) if value.ndim > 1 else 1
        state[tensor.name] = value
    return state


def same_bits(a, b):
    """Equal names in equal order, dtypes, shapes and bytes: -0.0 is not 0.0 here."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def triggered_rows(n=5, size=32, classes=10, rows=40):
    generator = np.random.default_rng(3)
    return Triggered(
        images=generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        labels=(1 + np.arange(n, dtype=np.int32)) % classes,
        attack_labels=np.zeros(n, np.int32),
        index=np.arange(3, 3 + 2 * n, 2, dtype=np.int64),
        rows=rows,
    )


def stored_in_memory(triggered):
    """The state of a poisoned test set whose images are kept in memory; keys are NumPy integers, as they are there."""
    from PIL import Image

    rows = zip(*triggered[:4], strict=True)
    entries = {i: (Image.fromarray(image), int(goal), np.int64(truth)) for image, truth, goal, i in rows}
    marked = np.zeros(triggered.rows)
    marked[triggered.index] = 1
    return {
        "bd_data_container": {"save_folder_path": None, "data_dict": entries, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": triggered.index,
        "poison_indicator": marked,
        "save_folder_path": None,
    }


def stored_as_files(triggered, folder):
    """The same with PNG files below ``folder``, under the path of another machine."""
    from PIL import Image

    stored, path = stored_in_memory(triggered), "../record/badnet_0_1/bd_test_dataset"
    for i, (_, goal, truth) in stored["bd_data_container"]["data_dict"].items():
        file = folder / "bd_test_dataset" / str(truth) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(triggered.images[triggered.index.tolist().index(i)]).save(file)
        stored["bd_data_container"]["data_dict"][i] = {"path": f"{path}/{truth}/{i}.png", "other_info": [goal, truth]}
    stored["bd_data_container"]["save_folder_path"] = stored["save_folder_path"] = path
    return stored


def attack_result(torch, model, state, bd_test, dataset="cifar10"):
    """The dictionary that the reference pickles."""
    return {
        "model_name": model.name,
        "num_classes": model.spec.classes,
        "model": {name: torch.asarray(value).clone() for name, value in state.items()},
        "data_path": f"../data/{dataset}",
        "img_size": tuple(model.spec.image_shape),
        "clean_data": dataset,
        "bd_train": None,
        "bd_test": bd_test,
    }
