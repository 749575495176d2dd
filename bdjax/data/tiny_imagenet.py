"""Tiny-ImageNet: 200 classes of 64x64 images, labels in the sorted order of the WordNet ids, tested on the validation split."""

import functools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bdjax.data.annotations import labels_of
from bdjax.data.source import Edition, Row, Source
from bdjax.data.tiny_folder import layout
from bdjax.errors import UserError
from bdjax.types import DataSpec

# The 200 ids (each is "n" and eight digits), sorted: the position is the label. WordNet's first name of each stands below.
_IDS = """
01443537 01629819 01641577 01644900 01698640 01742172 01768244 01770393 01774384 01774750 01784675 01855672 01882714 01910747
01917289 01944390 01945685 01950731 01983481 01984695 02002724 02056570 02058221 02074367 02085620 02094433 02099601 02099712
02106662 02113799 02123045 02123394 02124075 02125311 02129165 02132136 02165456 02190166 02206856 02226429 02231487 02233338
02236044 02268443 02279972 02281406 02321529 02364673 02395406 02403003 02410509 02415577 02423022 02437312 02480495 02481823
02486410 02504458 02509815 02666196 02669723 02699494 02730930 02769748 02788148 02791270 02793495 02795169 02802426 02808440
02814533 02814860 02815834 02823428 02837789 02841315 02843684 02883205 02892201 02906734 02909870 02917067 02927161 02948072
02950826 02963159 02977058 02988304 02999410 03014705 03026506 03042490 03085013 03089624 03100240 03126707 03160309 03179701
03201208 03250847 03255030 03355925 03388043 03393912 03400231 03404251 03424325 03444034 03447447 03544143 03584254 03599486
03617480 03637318 03649909 03662601 03670208 03706229 03733131 03763968 03770439 03796401 03804744 03814639 03837869 03838899
03854065 03891332 03902125 03930313 03937543 03970156 03976657 03977966 03980874 03983396 03992509 04008634 04023962 04067472
04070727 04074963 04099969 04118538 04133789 04146614 04149813 04179913 04251144 04254777 04259630 04265275 04275548 04285008
04311004 04328186 04356056 04366367 04371430 04376876 04398044 04399382 04417672 04456115 04465501 04486054 04487081 04501370
04507155 04532106 04532670 04540053 04560804 04562935 04596742 04597913 06596364 07579787 07583066 07614500 07615774 07695742
07711569 07715103 07720875 07734744 07747607 07749582 07753592 07768694 07871810 07873807 07875152 07920052 09193705 09246464
09256479 09332890 09428293 12267677
"""
_NAMES = """
goldfish European_fire_salamander bullfrog tailed_frog American_alligator boa_constrictor trilobite scorpion black_widow
tarantula centipede goose koala jellyfish brain_coral snail slug sea_slug American_lobster spiny_lobster black_stork
king_penguin albatross dugong Chihuahua Yorkshire_terrier golden_retriever Labrador_retriever German_shepherd standard_poodle
tabby Persian_cat Egyptian_cat cougar lion brown_bear ladybug fly bee grasshopper walking_stick cockroach mantis dragonfly
monarch sulphur_butterfly sea_cucumber guinea_pig hog ox bison bighorn gazelle Arabian_camel orangutan chimpanzee baboon
African_elephant lesser_panda abacus academic_gown altar apron backpack bannister barbershop barn barrel basketball bathtub
beach_wagon beacon beaker beer_bottle bikini binoculars birdhouse bow_tie brass broom bucket bullet_train butcher_shop candle
cannon cardigan cash_machine CD_player chain chest Christmas_stocking cliff_dwelling computer_keyboard confectionery convertible
crane dam desk dining_table drumstick dumbbell flagpole fountain freight_car frying_pan fur_coat gasmask go-kart gondola
hourglass iPod jinrikisha kimono lampshade lawn_mower lifeboat limousine magnetic_compass maypole military_uniform miniskirt
moving_van nail neck_brace obelisk oboe organ parking_meter pay-phone picket_fence pill_bottle plunger pole police_van poncho
pop_bottle potter's_wheel projectile punching_bag reel refrigerator remote_control rocking_chair rugby_ball sandal school_bus
scoreboard sewing_machine snorkel sock sombrero space_heater spider_web sports_car steel_arch_bridge stopwatch sunglasses
suspension_bridge swimming_trunks syringe teapot teddy thatch torch tractor triumphal_arch trolleybus turnstile umbrella
vestment viaduct volleyball water_jug water_tower wok wooden_spoon comic_book plate guacamole ice_cream ice_lolly pretzel
mashed_potato cauliflower bell_pepper mushroom orange lemon banana pomegranate meat_loaf pizza potpie espresso alp cliff
coral_reef lakeside seashore acorn
"""
WNIDS = tuple(f"n{number}" for number in _IDS.split())
SPEC = DataSpec(
    name="tiny_imagenet",
    image_shape=(64, 64, 3),
    classes=200,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2302, 0.2265, 0.2262),
    flip=False,
    pad=4,
    class_names=tuple(name.replace("_", " ") for name in _NAMES.split()),
)
ARCHIVE, HOME = "tiny-imagenet-200.zip", "tiny-imagenet-200"
PLACE = {
    "train": re.compile(rf"{HOME}/train/(n\d{{8}})/images/(n\d{{8}})_\d+\.JPEG"),
    "test": re.compile(rf"{HOME}/val/images/([^/]+\.JPEG)"),
}


def encoded(folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split, in the order of the archive; some images are greyscale.

    Args:
      folder: holds ``tiny-imagenet-200.zip``.
      split: "train", or "test": the validation split, the only other one with published labels.

    Raises:
      UserError: the ids are not the 200 known ones, an image lies in the folder of another class than its name says, or images
        and ``val_annotations.txt`` disagree.

    Source: Tiny ImageNet Visual Recognition Challenge, Stanford CS231N, 2015, from J. Deng, W. Dong, R. Socher, L.-J. Li, K. Li
      and L. Fei-Fei, ImageNet: A large-scale hierarchical image database, CVPR 2009.
    Differs: a label is the rank of the WordNet id in sorted order, not its line in ``wnids.txt``.
    """
    path = folder / ARCHIVE
    with zipfile.ZipFile(path) as archive:
        found = tuple(sorted(_text(path, archive, f"{HOME}/wnids.txt").split()))
        if found != WNIDS:
            odd = sorted(set(found) ^ set(WNIDS)) or ["one id twice"]
            raise UserError(f"{path}: wnids.txt does not hold the {len(WNIDS)} known ids: {odd[0]} differs.")
        part = f"{HOME}/train/" if split == "train" else f"{HOME}/val/"
        entries = [entry for entry in archive.namelist() if entry.startswith(part) and entry.endswith(".JPEG")]
        labels = _train_labels(path, entries) if split == "train" else _test_labels(path, archive, entries)
        for entry in entries:
            yield Row(f"{path}: {entry}", labels[entry], functools.partial(archive.read, entry))


def _train_labels(path: Path, entries: list[str]) -> dict[str, int]:
    """Return labels by folder, checked against the id in the file name."""
    ranks, labels = {wnid: rank for rank, wnid in enumerate(WNIDS)}, {}
    for entry in entries:
        place = PLACE["train"].fullmatch(entry)
        if place is None or place[1] not in ranks:
            raise UserError(f"{path} holds {entry!r}; expected {HOME}/train/<id>/images/<id>_<number>.JPEG with a known id.")
        if place[1] != place[2]:
            raise UserError(f"{path} holds {entry!r}: its folder says {place[1]}, its name {place[2]}.")
        labels[entry] = ranks[place[1]]
    return labels


def _test_labels(path: Path, archive: zipfile.ZipFile, entries: list[str]) -> dict[str, int]:
    ranks, listed = {wnid: rank for rank, wnid in enumerate(WNIDS)}, []
    for entry in entries:
        if not PLACE["test"].fullmatch(entry):
            raise UserError(f"{path} holds {entry!r}; expected {HOME}/val/images/<file>.JPEG.")
    for line in _text(path, archive, f"{HOME}/val/val_annotations.txt").splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in ranks:
            raise UserError(f"{path}: val_annotations.txt gives {file} the id {wnid!r}, which is none of the {len(WNIDS)}.")
        listed.append((f"{HOME}/val/images/{file}", ranks[wnid]))
    return labels_of(f"{path}: val_annotations.txt", listed, entries)


def _text(path: Path, archive: zipfile.ZipFile, entry: str) -> str:
    if entry not in archive.namelist():
        raise UserError(f"{path} lacks {entry}.")
    return archive.read(entry).decode()


OFFICIAL = Edition(
    name="official",
    counts={"train": (500,) * 200, "test": (50,) * 200},
    archives={ARCHIVE: "md5:90528d7ca1a48142e341f4ef8d21d0de"},
    encoded=encoded,
    urls={ARCHIVE: f"http://cs231n.stanford.edu/{ARCHIVE}"},
)
SUBSET = Edition(
    name="subset",  # of each class the first 64 training and 16 validation images
    counts={"train": (64,) * 200, "test": (16,) * 200},
    archives={ARCHIVE: "sha256:2c9c6bfab73b159028487f69b85c3925151c90f423360850dedb63ce2463711d"},
    encoded=encoded,
)
TINY_IMAGENET = Source(
    spec=SPEC,
    editions=(OFFICIAL, SUBSET),
    folder="tiny-imagenet",
    layouts=(layout(SPEC, dict(zip(WNIDS, SPEC.class_names, strict=True))),),
)
