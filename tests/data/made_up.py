"""Small archives of noise in the layout of the official ones, and the table told that they are the right ones."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np

from bdjax.data.cifar10 import BATCHES, CIFAR10
from bdjax.data.gtsrb import TEST, TRAIN, TRUTH
from bdjax.data.table import DATASETS
from bdjax.data.tiny_imagenet import HOME, WNIDS

HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
COUNTS = {
    "cifar10": {"train": (6,) * 10, "test": (2,) * 10},
    "gtsrb": {"train": tuple(2 + label % 3 for label in range(43)), "test": (1,) * 43},
    "tiny_imagenet": {"train": (2,) * 200, "test": (1,) * 200},
}


def image(pixels, kind):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def noise(generator, *shape):
    return generator.integers(0, 256, shape, dtype=np.uint8)


def cifar10_jpeg(folder):
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with zipfile.ZipFile(folder / f"cifar10-{split}.zip", "w") as archive:
            for name, rows in zip(CIFAR10.spec.class_names, COUNTS["cifar10"][split], strict=True):
                for number in range(rows):
                    archive.writestr(f"{split}/{name}/{number:04d}.jpg", image(noise(generator, 32, 32, 3), "JPEG"))
    (folder / "labels.txt").write_text("\n".join(CIFAR10.spec.class_names) + "\n")


def cifar10_binary(folder, **changes):
    """Twelve rows a batch, labels in turn; the batches come in a scrambled order. Returns {file: records u8[n 3073]}."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    records, start = {}, 0
    for split in ("train", "test"):
        for name in BATCHES[split]:
            rows = 12 if split == "train" else 20
            labels = (np.arange(start, start + rows) % 10).astype(np.uint8)
            records[name] = np.concatenate([labels[:, None], noise(generator, rows, 3072)], 1)
            start += rows if split == "train" else 0
    files = {name: rows.tobytes() for name, rows in records.items()}
    files["batches.meta.txt"] = ("\n".join(CIFAR10.spec.class_names) + "\n\n").encode()
    files |= changes
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in sorted(files, key=lambda name: hashlib.md5(name.encode()).digest()):
            if files[name] is not None:
                entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                entry.size = len(files[name])
                archive.addfile(entry, io.BytesIO(files[name]))
    return records


def gtsrb(folder, sizes=None):
    """``sizes``: draw height and width from this range; None: all 32x32, compressed by LZMA. Returns {entry: pixels}."""
    generator = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    how = zipfile.ZIP_DEFLATED if sizes else zipfile.ZIP_LZMA
    pixels = {}

    def drawn(entry):
        shape = generator.integers(*sizes, 2) if sizes else (32, 32)
        pixels[entry] = noise(generator, *shape, 3)
        return image(pixels[entry], "PPM")

    with zipfile.ZipFile(folder / TRAIN, "w", how) as archive:
        archive.writestr("GTSRB/Readme-Images.txt", "not an image")
        for label, rows in enumerate(COUNTS["gtsrb"]["train"]):
            home = f"GTSRB/Final_Training/Images/{label:05d}/"
            lines = [HEADER]
            for frame in range(rows):
                archive.writestr(f"{home}00000_{frame:05d}.ppm", drawn(f"{home}00000_{frame:05d}.ppm"))
                lines.append(f"00000_{frame:05d}.ppm;30;31;5;5;25;26;{label}")
            archive.writestr(f"{home}GT-{label:05d}.csv", "\r\n".join(lines) + "\r\n")
    lines = [HEADER]
    with zipfile.ZipFile(folder / TEST, "w", how) as archive:
        archive.writestr("GTSRB/Final_Test/Images/GT-final_test.test.csv", "the list without labels")
        for number in range(43):
            entry = f"GTSRB/Final_Test/Images/{number:05d}.ppm"
            archive.writestr(entry, drawn(entry))
            lines.append(f"{number:05d}.ppm;30;31;5;5;25;26;{number * 7 % 43}")
    with zipfile.ZipFile(folder / TRUTH, "w", how) as archive:
        archive.writestr("GT-final_test.csv", "\n".join(lines) + "\n")
    return pixels


def tiny_imagenet(folder, ids=WNIDS):
    """Classes come in the reverse of sorted order, in ``wnids.txt`` and in the archive; every third image is greyscale."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{HOME}/wnids.txt", "\n".join(ids[::-1]) + "\n")
        archive.writestr(f"{HOME}/words.txt", "n00001740\tentity\n")
        for wnid in ids[::-1]:
            archive.writestr(f"{HOME}/train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
            for number in range(2):
                archive.writestr(f"{HOME}/train/{wnid}/images/{wnid}_{number}.JPEG", _flat(generator, number))
        lines = []
        for number, wnid in enumerate(ids):
            archive.writestr(f"{HOME}/val/images/val_{number}.JPEG", _flat(generator, number % 3))
            lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9")
        archive.writestr(f"{HOME}/val/val_annotations.txt", "\n".join(lines) + "\n")
        archive.writestr(f"{HOME}/test/images/test_0.JPEG", b"no label, not read")


def _flat(generator, number):
    shape = (64, 64) if number == 1 else (64, 64, 3)
    return image(np.full(shape, generator.integers(256), np.uint8), "JPEG")


def rewrite(path, change):
    """Write a zip archive again; ``change(name, bytes)`` gives a list of entries for each."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            for new_name, new_data in change(name, data):
                archive.writestr(new_name, new_data)


def declare(patch, name, edition, folder, counts=None):
    """Tell the table that the archives in ``folder`` are that edition of a data set; ``counts``: None: those made up here."""
    source = DATASETS[name]

    def told(known):
        if known.name != edition:
            return known
        digests = {}
        for file, digest in known.archives.items():
            kind = digest.partition(":")[0]
            digests[file] = f"{kind}:{hashlib.new(kind, (folder / file).read_bytes()).hexdigest()}"
        return known._replace(archives=digests, counts=counts or COUNTS[name])

    patch.setitem(DATASETS, name, source._replace(editions=tuple(map(told, source.editions))))
