"""A made-up CIFAR-10: the real layout, 6 training and 2 test rows per class, noise for images."""

import hashlib
import io
import zipfile

import numpy as np
import pytest

from bdjax.data.cifar10 import CIFAR10
from bdjax.data.table import DATASETS

ROWS = {"train": 6, "test": 2}


def write_archives(folder):
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, rows in ROWS.items():
        with zipfile.ZipFile(folder / f"cifar10-{split}.zip", "w") as archive:
            for name in CIFAR10.spec.class_names:
                for number in range(rows):
                    file = io.BytesIO()
                    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
                    archive.writestr(f"{split}/{name}/{number:04d}.jpg", file.getvalue())
    (folder / "labels.txt").write_text("\n".join(CIFAR10.spec.class_names) + "\n")


def hashes(folder):
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in CIFAR10.archives}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """The folder that holds cifar10/; the table's source knows these archives; the cache lies in tmp_path/cache."""
    root = tmp_path / "data"
    write_archives(root / "cifar10")
    counts = {split: (rows,) * 10 for split, rows in ROWS.items()}
    monkeypatch.setitem(DATASETS, "cifar10", CIFAR10._replace(archives=hashes(root / "cifar10"), counts=counts))
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)
    return root


@pytest.fixture
def accept(data_dir, monkeypatch):
    """Declare the archives as they are now to be the right ones (after a test changed what they hold)."""

    def accept():
        monkeypatch.setitem(DATASETS, "cifar10", DATASETS["cifar10"]._replace(archives=hashes(data_dir / "cifar10")))

    return accept
