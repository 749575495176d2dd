"""Wrong input that people have: one line that names the file and what to do, and no traceback or address, whatever the fault."""

import gzip
import io
import json
import pickle
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from bdjax.cli import main as cli
from bdjax.data import cifar10, cifar100
from tests.data import layouts


def images(folder, **changed):
    """Own images in two classes, with some files of "train/a" replaced: {name: bytes}."""
    for split in ("train", "test"):
        for label in "ab":
            layouts.write(folder / split / label, {f"{row}.png": layouts.picture(layouts.noise(8, 8, 3)) for row in range(2)})
    layouts.write(folder / "train" / "a", {name.replace("_", ".", 1): data for name, data in changed.items()})
    return folder


def saved(pixels, kind, mode=None, **options):
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def settings(folder, text):
    (folder / "dataset.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def arrays(folder, **changed):
    plain = {"train_images": layouts.noise(8, 8, 8, 3), "train_labels": np.arange(8) % 2}
    plain |= {"test_images": layouts.noise(4, 8, 8, 3), "test_labels": np.arange(4) % 2}
    folder.mkdir()
    for name, array in (plain | changed).items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def put(place, made, files):
    """Write a layout with some files replaced; None: left out."""
    content = {name: data for name, data in (made[0] | files).items() if data is not None}
    return layouts.write(place, content)


def damaged_tar(place):
    path = layouts.tar(place / cifar10.PYTHON.archive, cifar10.PYTHON.home, layouts.cifar_python(cifar10.PYTHON, 4)[0])
    path.write_bytes(path.read_bytes()[:3000])
    return place


def empty_tar(place):
    place.mkdir()
    with tarfile.open(place / cifar100.PYTHON.archive, "w:gz"):
        pass
    return place


KAGGLE = ("kaggle", 4)
FLOAT = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
BIG = b"P6 30000 30000 255\n"
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}
BATCH = pickle.dumps({b"data": np.zeros((4, 100), np.uint8), b"labels": [0, 1, 2, 3]}, 2)

# {what is wrong: (how it is made in a folder of the given path, the line that tells)}
WRONG = {
    # images
    "an empty file": (lambda p: images(p, e_png=b""), r"a/e.png cannot be read as an image: it is empty \(0 bytes\); fetch"),
    "a web page": (
        lambda p: images(p, e_png=b"<html>404</html>"),
        r"a/e.png .* begins with b'<html>404</html>', .* or remove it",
    ),
    "a pointer of Git LFS": (lambda p: images(p, e_png=b"version https://git-lfs"), r"a/e.png .* run: git lfs pull"),
    "half a JPEG": (lambda p: images(p, e_jpg=saved(layouts.noise(8, 8, 3), "JPEG")[:400]), r"a/e.jpg .* truncated or damaged"),
    "half a TIFF": (lambda p: images(p, e_tif=saved(layouts.noise(8, 8, 3), "TIFF")[:90]), r"a/e.tif .* truncated or damaged"),
    "an animation": (
        lambda p: images(p, e_gif=saved(layouts.noise(8, 8, 3), "GIF", **FRAMES)),
        r"a/e.gif .* save the one that is",
    ),
    "too many pixels": (
        lambda p: images(p, e_ppm=BIG),
        r"a/e.ppm .* 900,000,000 pixels; at most 89,478,485 .* scale it down first",
    ),
    "floating-point samples": (lambda p: images(p, e_tif=saved(FLOAT, "TIFF")), r"a/e.tif .* floating-point .*value_range"),
    "wide integers": (
        lambda p: images(p, e_tif=saved((FLOAT * 9e4).astype(np.int32), "TIFF")),
        r"a/e.tif .* whole numbers of 32 bits",
    ),
    "another size": (
        lambda p: images(p, e_png=layouts.picture(layouts.noise(9, 8, 3))),
        r"a/e.png is 9x8 .* put .*\"image_size\": \[8,",
    ),
    "a video": (lambda p: images(p, e_mp4=b"ftyp"), r"a/e.mp4 is no image file; allowed are .png"),
    "a range for colours": (lambda p: settings(images(p), {"value_range": [0, 1]}), r"a/0.png .* value_range is for greyscale"),
    "a range upside down": (
        lambda p: settings(images(p), {"value_range": [1, 0]}),
        r"dataset.json: value_range is \[1, 0\]; allowed",
    ),
    "two channels": (
        lambda p: settings(images(p), {"channels": 2}),
        r"dataset.json: channels is 2; allowed is 1 \(greyscale\) or 3",
    ),
    "a size beyond memory": (lambda p: settings(images(p), {"image_size": [9**6, 9**6]}), r"wrong: 8 images .* GiB .*image_size"),
    "settings in pieces": (lambda p: settings(images(p), "{"), r"dataset.json cannot be read as JSON"),
    # arrays
    "arrays of 0 to 1": (
        lambda p: arrays(p, train_images=layouts.noise(8, 8, 8, 3) / 255),
        r"train_images.npy are float64; .* np.round\(255 \*",
    ),
    "16-bit arrays": (
        lambda p: arrays(p, test_images=np.full((4, 8, 8, 3), 999, np.uint16)),
        r"test_images.npy are uint16; .*images / 257",
    ),
    "normalised arrays": (
        lambda p: arrays(p, train_images=np.linspace(-2, 2, 1536).reshape(8, 8, 8, 3)),
        r"from -2 to 2: undo the norm",
    ),
    "arrays with NaN": (
        lambda p: arrays(p, train_images=np.full((8, 8, 8, 3), np.nan)),
        r"train_images.npy are float64; .* hold NaN",
    ),
    "channels first": (
        lambda p: arrays(p, train_images=layouts.noise(8, 3, 8, 8)),
        r"train_images.npy have shape .*transpose\(0, 2, 3, 1\)",
    ),
    "no channels": (
        lambda p: arrays(p, train_images=layouts.noise(8, 8, 8)),
        r"train_images.npy have shape .*images\[..., None\]",
    ),
    "arrays of objects": (
        lambda p: arrays(p, train_images=np.array([{}] * 8)),
        r"train_images.npy cannot be read as an array: .* np.save",
    ),
    "labels of another length": (lambda p: arrays(p, train_labels=np.arange(5) % 2), r"labels has 5 rows, images 8"),
    # layouts
    "an empty folder": (
        lambda p: p.mkdir() or p,
        r"wrong holds no data set: needed are train/.*; or cifar-10-batches-py/.* is empty",
    ),
    "a part of a folder": (
        lambda p: layouts.write(p, {"train/a/0.png": b"", "notes.txt": b""}),
        r"holds train/ and no test/: .* move a part of the images of each class into",
    ),
    "something else": (
        lambda p: layouts.write(p, {"notes.txt": b""}),
        r"holds no data set: .* Found there: notes",
    ),
    "a lost batch": (
        lambda p: put(p, layouts.cifar_python(cifar10.PYTHON, 4), {"data_batch_4": None}),
        r"wrong lacks data_batch_4; fetch or unpack it again",
    ),
    "a batch of another size": (
        lambda p: put(p, layouts.cifar_python(cifar10.PYTHON, 4), {"data_batch_4": BATCH}),
        r"data of data_batch_4 are uint8\[4, 100\]; uint8\[rows, 3072\] is needed",
    ),
    "half a batch": (
        lambda p: put(p, layouts.cifar_python(cifar10.PYTHON, 4), {"test_batch": BATCH[:50]}),
        r"test_batch cannot be read: it is truncated, damaged or no pickle",
    ),
    "half a binary batch": (
        lambda p: put(p, layouts.cifar_binary(cifar100.BINARY, 4), {"train.bin": bytes(3000)}),
        r"train.bin has 3,000 bytes, no multiple of the 3074 of a record",
    ),
    "half an archive": (damaged_tar, r"cifar-10-python.tar.gz cannot be read: .* fetch it again"),
    "an archive of nothing": (empty_tar, r"cifar-100-python.tar.gz lacks meta, test, train; fetch"),
    "test images without labels": (
        lambda p: put(p, layouts.gtsrb(*KAGGLE), {"Test.csv": None}),
        r"wrong lacks Test.csv, which holds the labels",
    ),
    "a table without classes": (
        lambda p: put(p, layouts.gtsrb(*KAGGLE), {"Test.csv": b"a,b\n1,2\n"}),
        r"Test.csv has the columns \['a', 'b'\]; Filename and ClassId are needed",
    ),
    "a table of other images": (
        lambda p: put(p, layouts.gtsrb(*KAGGLE), {"Test/00009.png": b""}),
        r"Test.csv does not list 00009.png, which .*Test holds",
    ),
    "a lost truth": (
        lambda p: put(p, layouts.gtsrb("torchvision", 4), {"gtsrb/GT-final_test.csv": None}),
        r"gtsrb lacks GT-final_test.csv, .* unpack GTSRB_Final_Test_GT.zip",
    ),
    "lost annotations": (
        lambda p: put(p, layouts.tiny(["n1", "n2"]), {"val/val_annotations.txt": None}),
        r"val lacks val_annotations.txt, .* unpack it again",
    ),
    "a class that is not there": (
        lambda p: put(p, layouts.tiny(["n1", "n2"]), {"wnids.txt": b"n1\nn2\nn3"}),
        r"lacks train/n3, which wnids.txt lists",
    ),
    "one half of SVHN": (
        lambda p: put(p, layouts.svhn(), {"test_32x32.mat": None}),
        r"wrong lacks test_32x32.mat; needed are",
    ),
    "no MATLAB file": (
        lambda p: put(p, layouts.svhn(), {"train_32x32.mat": b"<html>"}),
        r"train_32x32.mat cannot be read as a MATLAB file: .* fetch it again",
    ),
    "half an IDX file": (
        lambda p: put(p, layouts.mnist(), {"t10k-images-idx3-ubyte": layouts.idx(layouts.noise(20, 28, 28))[:99]}),
        r"t10k-images-idx3-ubyte is truncated or damaged: 83 bytes follow its header instead of 15,680",
    ),
    "half a compressed file": (
        lambda p: put(p, layouts.mnist(True), {"train-labels-idx1-ubyte.gz": gzip.compress(bytes(20))[:12]}),
        r"train-labels-idx1-ubyte.gz cannot be read: .* fetch it again",
    ),
    "labels for images": (
        lambda p: put(p, layouts.mnist(), {"train-images-idx3-ubyte": layouts.idx(np.zeros(20, np.uint8))}),
        r"train-images-idx3-ubyte is no IDX file of images",
    ),
    "fewer labels than images": (
        lambda p: put(p, layouts.mnist(), {"train-labels-idx1-ubyte": layouts.idx(np.zeros(3, np.uint8))}),
        r"train-images-idx3-ubyte has 20 images, train-labels-idx1-ubyte 3 labels",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_input_ends_in_one_line_that_names_the_file_and_the_remedy(tmp_path, capsys, wrong):
    make, message = WRONG[wrong]
    path = make(tmp_path / "wrong")
    command = (
        ["run", "--dataset", str(path), "--out", str(tmp_path / "out")]
        if (path / "train_images.npy").exists()
        else [*("data", "prepare", str(path))]
    )
    assert cli.main(command) == 2
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if not line.startswith("bdjax: note: ")]
    assert len(lines) == 1 and lines[0].startswith("bdjax: error: "), told.err
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in told.err and "0x" not in told.err and " object at " not in told.err and told.out == ""


@pytest.mark.parametrize(
    "name, made",
    [
        ("cifar10", lambda: layouts.cifar_python(cifar10.PYTHON, 20)),
        ("gtsrb", lambda: layouts.gtsrb("unpacked", 43)),
        ("mnist", layouts.mnist),
    ],
)
def test_an_incomplete_copy_is_never_taken_for_the_data_set_itself(tmp_path, capsys, name, made):
    layouts.write(tmp_path / "part", made()[0])
    assert cli.main(["data", "prepare", name, "--data-dir", str(tmp_path / "part")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(
        rf"part is no whole copy. {name}: in the train split class 0 has \d+ rows, expected", told
    )
