"""BibTeX of what was run comes from the sources that the methods themselves name."""

import re

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.data import DATASETS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.results import cite
from bdjax.results.cite import Paper, bibtex, papers
from bdjax.sweep.listing import paper

METHODS = {**ATTACKS, **DEFENSES, **{name: make for name, make in MODELS.items() if name != "cnn"}}


def row(**fields):
    return {"dataset": "cifar10", "model": "preactresnet18", "attack": "badnets", "defense": "none", **fields}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_a_paper_that_can_be_cited(name):
    source = paper(METHODS[name])
    found = papers(source)
    quoted = re.findall(r'"([^"]+)"', source)
    assert found and [one.title for one in found if one.title in quoted] == quoted
    for one in found:
        assert 1990 < one.year < 2030 and one.authors and one.venue and not one.venue.endswith((",", " "))


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_one(name):
    assert len(papers(cite.DATASETS[name])) == 1


def test_a_source_is_read_whole():
    told = (
        'A. B. One, C.-D. Two, E. Al Three et al., "A Title: With 2019 in It", arXiv 2003.12345, 2021; networks after '
        'F. Four, "Another", IEEE S&P 2020, page 3; settings of K. Dunnett et al., arXiv 2411.11200, 2024.'
    )
    first, second, survey = papers(told)
    assert first == Paper(
        ("A. B. One", "C.-D. Two", "E. Al Three", "others"), "A Title: With 2019 in It", "arXiv 2003.12345", 2021
    )
    assert second == Paper(("F. Four",), "Another", "IEEE S&P", 2020)
    assert survey.title.startswith("Countering Backdoor Attacks")
    assert papers("none; a plain network") == []
    entry = bibtex(first, ["ft_sam"])
    assert entry.startswith("@misc{one2021title,") and "eprint = {2003.12345}" in entry and r"ft\_sam" in entry
    assert "author = {One, A. B. and Two, C.-D. and Al Three, E. and others}" in entry
    assert r"booktitle = {IEEE S\&P}" in bibtex(second, [])


def test_each_paper_is_cited_once_with_what_it_was_used_for():
    told = cite.cite([row(), row(defense="ft"), row(defense="fp"), row(defense="fp", attack="bpp")])
    keys = re.findall(r"^@\w+\{(\w+),$", told, re.M)
    assert len(keys) == len(set(keys)) and keys == sorted(keys)
    assert "used here for ft, fp" in told and "BppAttack" in told and "used here for settings and evaluation" in told
    assert told.count("{") == told.count("}")


def test_a_method_without_a_source_is_named(tmp_path):
    own = tmp_path / "own.py"
    own.write_text('def mine(model, config=None, *, profile="corrected"):\n    """Do it.\n\n    Source: my own idea.\n    """\n')
    gone = f"{tmp_path / 'gone.py'}:mine"
    told = cite.cite([row(defense=f"{own}:mine"), row(defense=gone, dataset="/my/data")])
    assert f"% defense {own}:mine: my own idea." in told and f"% defense {gone}: " in told
    assert "% dataset /my/data: names no source" in told
