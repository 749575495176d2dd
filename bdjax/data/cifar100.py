"""CIFAR-100 with its 100 fine labels: the official releases, pickled or binary.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
"""

import functools

from bdjax.data.cifar_batches import Form, encoded, layout
from bdjax.data.source import Edition, Source
from bdjax.types import DataSpec

NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose
sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
SPEC = DataSpec(
    name="cifar100",
    image_shape=(32, 32, 3),
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),  # of the training rows
    std=(0.2673, 0.2564, 0.2762),
    flip=True,
    pad=4,
    class_names=tuple(NAMES.split()),
)
PYTHON = Form(
    key="python",
    spec=SPEC,
    home="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test=("test",),
    meta="meta",
    label="fine_labels",
    names="fine_label_names",
)
BINARY = Form(
    key="binary",
    spec=SPEC,
    home="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test=("test.bin",),
    meta="fine_label_names.txt",
    label=1,  # after the coarse label
    head=2,
)
OFFICIAL = Edition(
    name="official",
    counts={"train": (500,) * 100, "test": (100,) * 100},
    archives={"cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85"},
    encoded=functools.partial(encoded, PYTHON),
    urls={"cifar-100-python.tar.gz": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"},
)
CIFAR100 = Source(spec=SPEC, editions=(OFFICIAL,), folder="cifar100", layouts=(layout(PYTHON), layout(BINARY)))
