"""BibTeX of the papers behind a folder of results, read from the ``Source:`` of each method that it holds."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bdjax.attacks.table import ATTACKS, IMAGES_ONLY
from bdjax.errors import UserError
from bdjax.plugins.load import factory
from bdjax.store import location, records
from bdjax.store.location import Location
from bdjax.sweep.listing import paper

NO_PAPER = "none"  # how the source of what has no paper begins
SURVEY = (
    'K. Dunnett, R. Arablouei, D. Miller, V. Dedeoglu, R. Jurdak, "Countering Backdoor Attacks in Image Recognition: '
    'A Survey and Evaluation of Mitigation Strategies", arXiv 2411.11200, 2024.'
)
DATASETS = {
    "cifar10": 'A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.',
    "gtsrb": 'J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel, "The German Traffic Sign Recognition Benchmark: A Multi-class '
    'Classification Competition", IJCNN 2011.',
    "tiny_imagenet": 'Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford University, CS 231N, 2015.',
    "cifar100": 'A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.',
    "svhn": 'Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, "Reading Digits in Natural Images with Unsupervised '
    'Feature Learning", NIPS Workshop on Deep Learning and Unsupervised Feature Learning, 2011.',
    "mnist": 'Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", '
    "Proceedings of the IEEE, 1998.",
    "fashion_mnist": 'H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning '
    'Algorithms", arXiv 1708.07747, 2017.',
    "digits": 'E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.',
}
_AUTHOR = r"(?:[A-Z]\.(?:[ -]|(?=[A-Z])))+(?:[a-z]+ )?[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*"
_YEAR = r"(?<![\d.])(?P<year>(?:19|20)\d\d)(?!\d|\.\d)"
_PAPER = re.compile(rf'(?P<authors>{_AUTHOR}(?:, {_AUTHOR})*(?: et al\.)?), "(?P<title>[^"]+)", (?P<venue>[^"]*?){_YEAR}')


class Paper(NamedTuple):
    """One paper."""

    authors: tuple[str, ...]  # initials first; "others" last where they are more
    title: str
    venue: str
    year: int

    @property
    def key(self) -> str:
        """Citation key: surname of the first author, year, first word of the title that is not an article."""
        words = [word for word in re.findall(r"[\w-]+", self.title) if word.lower() not in ("a", "an", "the", "on")]
        text = f"{self.authors[0].split()[-1]}{self.year}{words[0]}"
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        return re.sub(r"\W", "", plain).lower()


def papers(source: str) -> list[Paper]:
    """The papers that a ``Source:`` names as ``authors, "title", venue year``; the survey where only its number is given."""
    found = []
    for match in _PAPER.finditer(source):
        names = match["authors"].removesuffix(" et al.")
        authors = [*re.findall(_AUTHOR, names), *(["others"] if match["authors"] != names else [])]
        venue = match["venue"].strip(" ,")
        found.append(Paper(tuple(authors), " ".join(match["title"].split()), venue, int(match["year"])))
    if "2411.11200" in source and not any("2411.11200" in one.venue for one in found):
        found += papers(SURVEY)
    return found


def bibtex(one: Paper, used: Iterable[str]) -> str:
    """An entry, with what it was used for as its note."""
    fields = {
        "author": " and ".join(re.sub(r"^((?:[A-Z]\.[ -]?)+) (.+)$", r"\2, \1", name) for name in one.authors),
        "title": f"{{{one.title.replace('–', '--')}}}",
        "year": str(one.year),
    }
    number = re.fullmatch(r"arXiv (\d+\.\d+)", one.venue)
    if number:
        fields |= {"eprint": number[1], "archivePrefix": "arXiv"}
    else:
        fields["booktitle"] = one.venue.replace("&", r"\&")
    fields["note"] = "used here for " + ", ".join(used).replace("_", r"\_")
    kind = "misc" if number else "inproceedings"
    return f"@{kind}{{{one.key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def cite(rows: Iterable[Mapping[str, Any]]) -> str:
    """BibTeX of every paper behind these records, each once; a comment names a user's methods whose source says none."""
    used: dict[Paper, dict[str, None]] = {}
    without = []
    for kind, name in dict.fromkeys(pair for row in rows for pair in _named(row)):
        source = _source(kind, name)
        found = papers(source)
        for one in found:
            used.setdefault(one, {})[name] = None
        if not found and not source.startswith(NO_PAPER):
            without.append(f"% {kind} {name}: " + (source or "names no source"))
    used[papers(SURVEY)[0]] = {"settings and evaluation": None}
    entries = [bibtex(one, names) for one, names in sorted(used.items(), key=lambda item: item[0].key)]
    return "\n\n".join([*entries, *(["\n".join(without)] if without else [])])


def _named(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("dataset", row["dataset"]), ("model", row["model"]), ("attack", row["attack"]), ("defense", row["defense"])]


def _source(kind: str, name: str) -> str:
    from bdjax.defenses.table import DEFENSES
    from bdjax.models import MODELS

    if kind == "dataset":
        return DATASETS.get(name, "")
    if kind == "model":
        return paper(MODELS[name])
    if name == "none":  # no defense ran
        return NO_PAPER
    try:
        return paper(factory(kind, name, {**ATTACKS, **IMAGES_ONLY} if kind == "attack" else DEFENSES))
    except UserError as error:  # a file of the user's own that is not here
        return str(error)


def cite_folder(out: "str | Location") -> str:
    """BibTeX for a folder of results.

    Raises:
      UserError: it holds no records.
    """
    rows = records.read_rows(location.locate(out))
    if not rows:
        raise UserError(f"{out} holds no records; write some with: bdjax run --out {out}")
    return cite(rows)
