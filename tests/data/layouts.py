"""Small copies of known data sets, laid out as they are unpacked: noise, and every reader told apart by what it must give."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image

from bdjax.data import cifar10, cifar100

GENERATOR = np.random.default_rng(7)


def noise(*shape):
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def cifar_rows(rows, classes=10):
    """(planes u8[n 3072], images u8[n 32 32 3], labels i64[n] in turn)."""
    planes = noise(rows, 3072)
    return planes, planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.arange(rows) % classes


def _pickled(content, protocol=2, text=False):
    return pickle.dumps({key if text else key.encode(): value for key, value in content.items()}, protocol)


def cifar_python(form, per_batch, protocol=2, text=False, arrays=False):
    """{file: bytes} of a pickled release, {split: images}, {split: labels}."""
    names = list(form.spec.class_names)
    files = {form.meta: _pickled({form.names: names if text else [name.encode() for name in names]}, protocol, text)}
    images, labels = {}, {}
    for split in ("train", "test"):
        pictures, told = [], []
        for batch in form.batches(split):
            planes, shown, numbers = cifar_rows(per_batch, form.spec.classes)
            content = {"data": planes, form.label: numbers if arrays else numbers.tolist(), "filenames": ["x.png"]}
            files[batch] = _pickled(content, protocol, text)
            pictures.append(shown)
            told.append(numbers)
        images[split], labels[split] = np.concatenate(pictures), np.concatenate(told)
    return files, images, labels


def cifar_binary(form, per_batch):
    files = {form.meta: "\n".join(form.spec.class_names).encode() + b"\n"}
    images, labels = {}, {}
    for split in ("train", "test"):
        pictures, told = [], []
        for batch in form.batches(split):
            planes, shown, numbers = cifar_rows(per_batch, form.spec.classes)
            head = np.zeros((per_batch, form.head), np.uint8)
            head[:, form.label] = numbers
            files[batch] = np.concatenate([head, planes], 1).tobytes()
            pictures.append(shown)
            told.append(numbers)
        images[split], labels[split] = np.concatenate(pictures), np.concatenate(told)
    return files, images, labels


CIFAR = {
    "cifar10 python": (cifar10.PYTHON, lambda: cifar_python(cifar10.PYTHON, 20)),
    "cifar10 python of today": (cifar10.PYTHON, lambda: cifar_python(cifar10.PYTHON, 20, 5, True, True)),
    "cifar10 binary": (cifar10.BINARY, lambda: cifar_binary(cifar10.BINARY, 20)),
    "cifar100 python": (cifar100.PYTHON, lambda: cifar_python(cifar100.PYTHON, 200)),
    "cifar100 binary": (cifar100.BINARY, lambda: cifar_binary(cifar100.BINARY, 200)),
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(path, home, files):
    """An archive with its files in no sorted order, and what a Mac adds to one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(files, key=lambda name: hashlib.md5(name.encode()).digest()):
            for entry, data in ((f"{home}/._{name}", b"junk"), (f"{home}/{name}", files[name])):
                info = tarfile.TarInfo(entry)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def picture(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


def gtsrb(key, classes=43, rows=2, side=32):
    """{file: bytes} of GTSRB as "unpacked", "torchvision" or "kaggle", {split: images}, {split: labels}."""
    files, images, labels = {}, {"train": [], "test": []}, {"train": [], "test": []}
    kaggle = key == "kaggle"
    home = {"unpacked": "GTSRB/Final_Training/Images", "torchvision": "gtsrb/GTSRB/Training", "kaggle": "Train"}[key]
    tests = {"unpacked": "GTSRB/Final_Test/Images", "torchvision": "gtsrb/GTSRB/Final_Test/Images", "kaggle": "Test"}[key]
    kind, end = ("PNG", "png") if kaggle else ("PPM", "ppm")
    table = ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
    for label in range(classes):
        folder = f"{home}/{label}" if kaggle else f"{home}/{label:05d}"
        lines = [HEADER]
        for frame in range(rows):
            name = f"{label:05d}_00000_{frame:05d}.{end}" if kaggle else f"00000_{frame:05d}.{end}"
            pixels = noise(side, side, 3)
            files[f"{folder}/{name}"] = picture(pixels, kind)
            images["train"].append(pixels)
            labels["train"].append(label)
            lines.append(f"{name};29;30;5;6;24;25;{label}")
            table.append(f"29,30,5,6,24,25,{label},{folder}/{name}")
        if not kaggle:
            files[f"{folder}/GT-{label:05d}.csv"] = "\r\n".join(lines).encode()
    lines, tested = [HEADER], ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
    for number in range(classes):
        pixels, label = noise(side, side, 3), number * 7 % classes if classes % 7 else number
        files[f"{tests}/{number:05d}.{end}"] = picture(pixels, kind)
        images["test"].append(pixels)
        labels["test"].append(label)
        lines.append(f"{number:05d}.{end};29;30;5;6;24;25;{label}")
        tested.append(f"53,54,6,5,48,49,{label},Test/{number:05d}.{end}")
    if kaggle:
        table[1:] = reversed(table[1:])  # the table is in no order
        files |= {"Train.csv": "\n".join(table).encode(), "Test.csv": "\n".join(tested).encode(), "Meta.csv": b"Path,ClassId"}
        files["Meta/0.png"] = picture(noise(8, 8, 3))
    else:
        files[{"unpacked": "GTSRB/GT-final_test.csv", "torchvision": "gtsrb/GT-final_test.csv"}[key]] = "\n".join(lines).encode()
    return files, {split: np.stack(images[split]) for split in images}, {split: np.array(labels[split]) for split in labels}


def tiny(ids, rows=2):
    files, images, labels = {}, {"train": [], "test": []}, {"train": [], "test": []}
    lines = []
    for label, wnid in enumerate(sorted(ids)):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t9\t9\n"
        for number in range(rows):
            pixels = noise(64, 64, 3)
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = picture(pixels)  # lossless, whatever its name says
            images["train"].append(pixels)
            labels["train"].append(label)
    for number, wnid in enumerate(sorted(ids)):
        pixels = noise(64, 64, 3)
        files[f"val/images/val_{number:03d}.JPEG"] = picture(pixels)
        images["test"].append(pixels)
        labels["test"].append(number)
        lines.append(f"val_{number:03d}.JPEG\t{wnid}\t0\t0\t9\t9")
    files |= {"val/val_annotations.txt": "\n".join(lines).encode(), "wnids.txt": "\n".join(sorted(ids, reverse=True)).encode()}
    files |= {
        "words.txt": b"n00000001\tquokka, short-tailed scrub wallaby\nn00000002\tnumbat\n",
        "test/images/test_0.JPEG": b"unread",
    }
    return files, {split: np.stack(images[split]) for split in images}, {split: np.array(labels[split]) for split in labels}


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(packed=False, rows=20, side=28, names=("-idx", "-ubyte")):
    files, images, labels = {}, {}, {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images[split], labels[split] = noise(rows, side, side), (np.arange(rows) % 10).astype(np.uint8)
        for part, array in (("images", images[split]), ("labels", labels[split])):
            name = f"{stem}-{part}{names[0]}{array.ndim}{names[1]}"
            files[f"{name}.gz" if packed else name] = gzip.compress(idx(array)) if packed else idx(array)
    return files, {split: shown[..., None] for split, shown in images.items()}, labels


def svhn(rows=20):
    from scipy.io import savemat

    files, images, labels = {}, {}, {}
    for split in ("train", "test"):
        images[split], labels[split] = noise(rows, 32, 32, 3), np.arange(rows) % 10
        stored = np.where(labels[split] == 0, 10, labels[split]).astype(np.uint8)[:, None]
        buffer = io.BytesIO()
        savemat(buffer, {"X": images[split].transpose(1, 2, 3, 0), "y": stored}, do_compression=True)
        files[f"{split}_32x32.mat"] = buffer.getvalue()
    return files, images, labels
