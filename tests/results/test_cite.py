"""BibTeX of what was run comes from one file of references, which has every method, network and data set of the tables."""

import re

import pytest

from bdjax.attacks.stored import STORED
from bdjax.attacks.table import ATTACKS
from bdjax.data import DATASETS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.results.cite import cite
from bdjax.results.papers import PAPERS, SURVEY, entries
from bdjax.sweep.listing import paper

METHODS = {("attack", name): make for name, make in ATTACKS.items()} | {
    ("defense", name): make for name, make in DEFENSES.items()
}
METHODS |= {("model", name): make for name, make in MODELS.items() if name != "cnn"}


def row(**fields):
    return {"dataset": "cifar10", "model": "preactresnet18", "attack": "badnets", "defense": "none", **fields}


def test_every_entry_of_the_tables_has_its_papers():
    tables = {"dataset": DATASETS, "model": MODELS, "attack": {STORED: None, **ATTACKS}, "defense": {"none": None, **DEFENSES}}
    assert {kind: set(names) for kind, names in PAPERS.items()} == {kind: set(names) for kind, names in tables.items()}
    without = [name for names in PAPERS.values() for name, keys in names.items() if not keys]
    assert without == ["cnn", STORED, "none"]
    assert {key for names in PAPERS.values() for keys in names.values() for key in keys} == set(entries())


@pytest.mark.parametrize("kind, name", METHODS)
def test_the_papers_of_a_method_are_those_that_its_docstring_names(kind, name):
    source = paper(METHODS[kind, name])
    titles = [re.search(r"title = \{\{(.*)\}\}", entries()[key])[1] for key in PAPERS[kind][name]]
    quoted = re.findall(r'"([^"]+)"', source)
    assert [title for title in titles if title in {text.replace("–", "--") for text in quoted}]
    survey = SURVEY in PAPERS[kind][name]
    assert len(titles) == len(quoted) + (survey and "Countering" not in source) and ("2411.11200" in source) == survey


@pytest.mark.parametrize("key", entries())
def test_an_entry_is_complete_and_its_key_says_who_and_when(key):
    entry = entries()[key]
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.M))
    kind = "misc" if "eprint" in fields else "inproceedings"
    assert entry.startswith(f"@{kind}{{{key},\n") and entry.endswith(",\n}") and entry.count("{") == entry.count("}")
    assert set(fields) == {"author", "title", "year"} | ({"eprint", "archivePrefix"} if kind == "misc" else {"booktitle"})
    assert 1990 < int(fields["year"]) < 2030 and fields["year"] in key and all(fields.values())
    for author in fields["author"].split(" and "):
        assert author == "others" or re.fullmatch(r"[^,]+, ([A-Z]\.[ -]?)+", author)


def test_each_paper_is_cited_once_with_what_it_was_used_for():
    text = cite([row(), row(defense="ft"), row(defense="fp"), row(defense="fp", attack="bpp")])
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.M)
    assert len(keys) == len(set(keys)) and keys == sorted(keys)
    assert "used here for ft, fp" in text and "BppAttack" in text and "used here for settings and evaluation" in text
    assert text.count("{") == text.count("}")


def test_what_a_paper_was_used_for_is_escaped():
    assert r"note = {used here for ft\_sam}," in cite([row(defense="ft_sam")])


def test_a_model_that_was_not_defended_cites_its_data_network_and_attack():
    keys = re.findall(r"^@\w+\{(\w+),$", cite([row(model="cnn", attack=STORED, dataset="svhn")]), re.M)
    assert keys == [SURVEY, "netzer2011reading"]


def test_a_users_own_method_is_named_with_its_source(tmp_path):
    own = tmp_path / "own.py"
    own.write_text('def mine(model, config=None, *, profile="corrected"):\n    """Do it.\n\n    Source: my own idea.\n    """\n')
    gone = f"{tmp_path / 'gone.py'}:mine"
    text = cite([row(defense=f"{own}:mine"), row(defense=gone, dataset="/my/data")])
    assert f"% defense {own}:mine: my own idea." in text and f"% defense {gone}: " in text
    assert "% dataset /my/data: names no source" in text
