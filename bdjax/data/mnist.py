"""MNIST and Fashion-MNIST: 28x28 greyscale images of digits and of clothes, as IDX files.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-Based Learning Applied to Document Recognition, Proceedings of the
  IEEE, 1998; H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
  Algorithms, arXiv 1708.07747, 2017.
"""

from bdjax.data.idx import encoded, layout
from bdjax.data.source import Edition, Source
from bdjax.types import DataSpec

MNIST_SPEC = DataSpec(
    name="mnist",
    image_shape=(28, 28, 1),
    classes=10,
    mean=(0.1307,),  # of the training rows
    std=(0.3081,),
    flip=False,
    pad=4,
    class_names=tuple("0123456789"),
)
FASHION_SPEC = DataSpec(
    name="fashion_mnist",
    image_shape=(28, 28, 1),
    classes=10,
    mean=(0.2860,),  # of the training rows
    std=(0.3530,),
    flip=False,
    pad=4,
    class_names=("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FILES = tuple(
    f"{split}-{part}-idx{axes}-ubyte.gz" for split in ("train", "t10k") for part, axes in (("images", 3), ("labels", 1))
)
MNIST_SITE = "https://ossci-datasets.s3.amazonaws.com/mnist"
FASHION_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _official(site: str, digests: tuple[str, ...], counts: dict[str, tuple[int, ...]], first: tuple[int, ...]) -> Edition:
    """Return the official edition; its first labels are not those of others in the same files with as many rows per class."""
    archives = {file: f"md5:{digest}" for file, digest in zip(FILES, digests, strict=True)}
    return Edition("official", counts, archives, encoded, {file: f"{site}/{file}" for file in FILES}, first=first)


MNIST = Source(
    spec=MNIST_SPEC,
    editions=(
        _official(
            MNIST_SITE,
            (
                *("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
                *("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
            ),
            {
                "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
                "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            },
            (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
        ),
    ),
    folder="mnist",
    layouts=(layout(MNIST_SPEC, ("MNIST/raw", "mnist", "MNIST")),),
)
FASHION_MNIST = Source(
    spec=FASHION_SPEC,
    editions=(
        _official(
            FASHION_SITE,
            (
                *("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
                *("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
            {"train": (6000,) * 10, "test": (1000,) * 10},
            (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
        ),
    ),
    folder="fashion_mnist",
    layouts=(layout(FASHION_SPEC, ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "FashionMNIST")),),
)
