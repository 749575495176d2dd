"""The papers of the built-in methods, networks and data sets, by their keys in ``references.bib`` beside this file."""

import functools
from importlib.resources import files

SURVEY = "dunnett2024countering"  # the settings and the evaluation are its

DATASETS: dict[str, tuple[str, ...]] = {
    "digits": ("alpaydin1998optical",),
    "cifar10": ("krizhevsky2009learning",),
    "gtsrb": ("stallkamp2011german",),
    "tiny_imagenet": ("le2015tiny",),
    "cifar100": ("krizhevsky2009learning",),
    "svhn": ("netzer2011reading",),
    "mnist": ("lecun1998gradientbased",),
    "fashion_mnist": ("xiao2017fashionmnist",),
}
MODELS: dict[str, tuple[str, ...]] = {
    "cnn": (),  # a small network of no paper
    "preactresnet18": ("he2016identity",),
    "vgg19_bn": ("simonyan2015very",),
    "efficientnet_b3": ("tan2019efficientnet",),
    "mobilenet_v3_large": ("howard2019searching",),
}
ATTACKS: dict[str, tuple[str, ...]] = {
    "stored": (),  # images that were imported: nothing says which attack made them
    "badnets": ("gu2017badnets",),
    "blended": ("chen2017targeted",),
    "sig": ("barni2019new",),
    "low_frequency": ("zeng2021rethinking",),
    "ssba": ("li2021invisible", "tancik2020stegastamp"),
    "input_aware": ("nguyen2020inputaware",),
    "wanet": ("nguyen2021wanet", SURVEY),
    "bpp": ("wang2022bppattack", SURVEY),
}
DEFENSES: dict[str, tuple[str, ...]] = {
    "none": (),
    "ft": ("liu2018finepruning", SURVEY),
    "fp": ("liu2018finepruning", SURVEY),
    "nad": ("li2021neural", SURVEY),
    "nc": ("wang2019neural", SURVEY),
    "ft_sam": ("zhu2023enhancing", SURVEY),
    "fst": ("min2023towards", SURVEY),
    "i_bau": ("zeng2022adversarial", SURVEY),
    "sau": ("wei2023shared", SURVEY),
    "anp": ("wu2021adversarial", SURVEY),
    "clp": ("zheng2022datafree",),
    "rnp": ("li2023reconstructive", SURVEY),
    "awn": ("chai2022oneshot", SURVEY),
    "bnp": ("zheng2022preactivation", SURVEY),
    "npd": ("zhu2023neural", SURVEY),
    "pbe": ("mu2023progressive", SURVEY),
    "mm_bd": ("wang2024mmbd", SURVEY),
    "grad_prune": ("dunnett2024unlearning",),
    "ims": ("dunnett2025backdoor",),
    "nft": ("karim2024augmented", SURVEY),
    "fmp": ("huang2024adversarial", SURVEY),
    "bti_dbf": ("xu2024towards", SURVEY),
}
PAPERS = {"dataset": DATASETS, "model": MODELS, "attack": ATTACKS, "defense": DEFENSES}


@functools.cache
def entries() -> dict[str, str]:
    """The BibTeX entry of each key; in the file a blank line stands between two."""
    text = files("bdjax.results").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
