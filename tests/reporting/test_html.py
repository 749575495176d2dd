"""The page: one file that needs no other, holds every number, and says what is missing."""

import re
from html import unescape
from html.parser import HTMLParser

import polars as pl
import pytest

from bdjax.errors import UserError
from bdjax.reporting import figures, html, tables
from bdjax.reporting.glossary import WORDS, meaning
from bdjax.reporting.svg import inline
from bdjax.results.triggers import pictures


class Page(HTMLParser):
    """Tags, ids and outside references of a page; unbalanced tags are an error."""

    void = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.outside, self.cells, self.tags = [], [], [], 0, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        self.cells += tag == "td"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def built(records, tmp_path_factory):
    path = html.build(tmp_path_factory.mktemp("report"), records)
    return path, path.read_text()


def test_page_is_one_file_that_fetches_nothing(built):
    path, text = built
    page = Page(text)
    assert path.name == "index.html"
    beside = ["figures/", "leaderboard.tex", "table.csv", "table.md", "table.tex"]
    assert sorted(set(page.outside)) == beside  # links, nothing it needs
    assert len(page.ids) == len(set(page.ids)) and {"defenses", "effect", "triggers", "pruning", "all", "provenance"} <= set(
        page.ids
    )
    referred = set(re.findall(r'url\(#([\w-]+)\)|xlink:href="#([\w-]+)"', text))
    assert {a or b for a, b in referred} <= set(page.ids)
    assert (
        "@import" not in text
        and not re.search(r"url\((?!#)", text)
        and "$" not in re.sub(r"<script>.*</script>", "", text, flags=re.S)
    )


def test_page_holds_every_cell_of_both_tables_and_what_became_of_all_runs(built, records):
    page = Page(built[1])
    full, board = tables.full(records), tables.board(records)
    assert page.cells == sum(len(row) for printed in (full, board) for row in printed.rows)
    for count, text in (
        (16, "trained members"),
        (64, "defense runs"),
        (74, "measured"),
        (4, "infeasible"),
        (1, "failed"),
        (1, "non-finite"),
    ):
        assert f"<b>{count}</b>{text}" in re.sub(r"</?abbr[^>]*>", "", built[1])
    assert "0123abc" in built[1] and "jax 0.10.2" in built[1] and "d" * 64 in built[1]


def test_words_and_marks_are_explained_where_they_stand_and_at_the_end(built):
    text = unescape(built[1])
    for word in WORDS:
        assert f"<dt>{word.name}</dt><dd>{word.sentence}</dd>" in text
    assert text.index('id="provenance"') < text.index('id="glossary"')
    heads = re.findall(r"<th [^>]*><button[^>]*>(.*?)</button>", text)
    assert f'<abbr title="{meaning("ACC")}">ACC</abbr> %' in heads  # the button around it is what a keyboard reaches
    assert 'grad_prune<abbr tabindex="0">†</abbr>' in text
    assert "No pictures of ranks, chances of improvement" in text and "here are 4." in text


def test_networks_that_say_nothing_are_marked_behind_the_defense(records, tmp_path, sketched):
    dead = (pl.col("defense") == "clp") | ((pl.col("defense") == "ft") & (pl.col("seed") == 3))
    found = records.with_columns(acc=pl.when(dead).then(0.1).otherwise(pl.col("acc")))
    text = html.build(tmp_path, found).read_text()
    board = text.partition('id="board"')[2].partition("</table>")[0]
    cells = {
        name: cell
        for cell in re.findall(r"<td.*?</td>", board, flags=re.S)
        for name in ("clp", "ft", "fp")
        if f">{name}<" in cell
    }
    assert 'class="badge">at chance</abbr>' in cells["clp"] and 'class="badge part">at chance</abbr>' in cells["ft"]
    assert "badge" not in cells["fp"]


def test_files_beside_the_page(built, records):
    folder = built[0].parent
    assert (folder / "table.md").read_text() == tables.markdown(records)
    assert (folder / "table.csv").read_text() == tables.csv(records)
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == sorted(
        [
            "before-after-badnets.png",
            "before-after-blended.png",
            *(f"{name}-10-per-class.png" for name in ("boxes", "heat-map", "mitigated")),
            "pruned-channels-clp-badnets.png",
            "pruned-channels-clp-blended.png",
            "pruning-curve-fp-badnets.png",
            "pruning-curve-fp-blended.png",
            "triggers-digits.png",
        ]
    )
    assert all((folder / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.slow  # every picture is drawn once more
def test_page_repeats(built, records, tmp_path):
    assert html.build(tmp_path / "again", records).read_text() == built[1]


def test_a_picture_and_all_around_it_repeat(records, tmp_path, sketched, monkeypatch):
    one, two = (html.build(tmp_path / name, records).read_text() for name in ("one", "two"))
    assert one == two and "<svg" in one
    monkeypatch.undo()
    few = records.filter(pl.col("attack") == "badnets", pl.col("defense").is_in(["none", "ft"]))
    assert len({inline(figures.before_after(few), "salt") for _ in range(2)}) == 1


def test_trigger_pictures_are_made_from_the_record(records):
    made = pictures(records.filter(pl.col("attack") == "badnets").row(0, named=True))
    assert made.images.shape == made.triggered.shape == (8, 16, 16, 3) and made.images.dtype == made.triggered.dtype == "uint8"
    changed = (made.images != made.triggered).any(axis=(0, 3))
    assert changed[-3:, -3:].any() and not changed[:-4].any() and len(made.names) == 8


def test_missing_data_are_said_in_the_page(records, tmp_path, monkeypatch, sketched):
    for name in ("BDJAX_DATA_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))
    elsewhere = records.filter(pl.col("attack") == "badnets", pl.col("masks").is_null()).with_columns(dataset=pl.lit("cifar10"))
    text = html.build(tmp_path / "out", elsewhere).read_text()
    assert "No pictures of badnets on cifar10" in text and "bdjax data prepare cifar10" in text
    assert 'id="effect"' in text


def test_names_from_records_are_escaped(records, tmp_path, sketched):
    strange = records.filter(pl.col("defense") == "ft").with_columns(
        reason=pl.when(pl.col("reason").is_not_null()).then(pl.lit("<script>alert('&')</script>"))
    )
    text = html.build(tmp_path, strange).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in text


PARTS = [pl.col("defense") == "none", pl.col("ratio") == 0, pl.col("seed") == 1]


@pytest.mark.parametrize("kept", PARTS)
def test_parts_of_a_sweep_make_a_page_too(records, tmp_path, kept, sketched):
    Page(html.build(tmp_path, records.filter(kept)).read_text())


@pytest.mark.slow  # every picture is drawn
@pytest.mark.parametrize("kept", PARTS)
def test_parts_of_a_sweep_make_pictures_too(records, tmp_path, kept):
    path = html.build(tmp_path, records.filter(kept))
    Page(path.read_text())
    assert all(picture.stat().st_size > 5000 for picture in (tmp_path / "figures").iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(records, tmp_path, sketched):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        html.build(tmp_path / "file", records)
