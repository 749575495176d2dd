"""Links between the pages, and to files of the repository: the file is there, and so is the place in it."""

import posixpath
import re

import pytest

from docs.generators import api
from docs.generators.markdown import outside_code
from docs.generators.repository import destination, files, led, links, source
from tests.docs.pages import TOP, generated, written

OTHERS = ("benchmarks/results", "experiments")  # their Markdown is part of the site where a page links to it


def everything():
    paths = [TOP / "CHANGELOG.md", *(path for place in OTHERS for path in (TOP / place).rglob("*.md"))]
    more = {str(path.relative_to(TOP)): path.read_text(encoding="utf-8") for path in paths}
    return {**written(), **generated(), **more}


def anchors(text):
    """The places of a page that links can name."""
    prose = outside_code(text)
    headings = [re.sub(r"[`*]", "", line.lstrip("#").strip()) for line in prose if re.match(r"#+ ", line)]
    named = re.findall(r"\{ #([\w-]+) \}", text)
    return {*named, *(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings)}


def test_links_lead_somewhere():
    pages = everything()
    known = {*pages, *(f"docs/{path}" for path in api.pages())}
    broken = []
    for page, text in pages.items():
        for number, link in links(text):
            file, _, anchor = link.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
            there = path in known or (TOP / path).is_file()
            if not there or (anchor and path in pages and anchor not in anchors(pages[path])):
                broken.append(f"{page}:{number}: {link}")
        here = [found for line in outside_code(text) for found in re.findall(r"\]\(#([^)\s]+)\)", line)]
        broken += [f"{page}: #{anchor}" for anchor in here if anchor not in anchors(text)]
    assert not broken


def test_links_of_the_readme_work_in_a_checkout():
    """Where nothing is generated."""
    for _, link in links(written()["README.md"]):
        assert (TOP / link.partition("#")[0]).is_file(), link


def made_by_the_site(page, text):
    """The paragraphs (or rows of a table, or items of a list) of a page that link to pages which only the site has."""
    for part in re.split(r"\n\n|\n(?=\||- |\d+\. )", "\n".join(outside_code(text))):
        for _, link in links(part):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
            if not (TOP / path).is_file():
                yield part


def other_ways(part):
    """What a paragraph names that says the same in a checkout: a command, a call of help, a file."""
    spans = re.findall(r"`([^`]+)`", part)
    return [one for one in spans if re.match(r"bdjax ls |bdjax .*--help$|help\(bdjax", one) or (TOP / one).is_file()]


def test_a_link_to_a_page_that_only_the_site_has_stands_beside_another_way():
    found = [(page, part) for page, text in written().items() for part in made_by_the_site(page, text)]
    assert len(found) > 8 and not [one for one in found if not other_ways(one[1])]
    assert list(made_by_the_site("docs/x.md", "[a](methods/index.md)")) and not other_ways("`bdjax run` and `no.py`")


def test_the_first_page_says_which_pages_only_the_site_has():
    first = written()["docs/index.md"].partition("## ")[0]
    for page in {*generated(), *(f"docs/{path}" for path in api.pages())}:
        shown = page.removeprefix("docs/")
        assert any(f"`{place}`" in first for place in (shown, *(shown[: i + 1] for i, c in enumerate(shown) if c == "/"))), page


def test_a_broken_link_is_found():
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md:3 links to \.\./nowhere\.py"):
        files({"a.md": "# A\n\n[x](../nowhere.py)\n"})


def test_links_that_leave_the_pages_stay_in_the_site():
    assert led("[a](../../experiments/x.py) `[b](c.md)`", "how-to/x.md") == "[a](../repository/experiments/x.py.md) `[b](c.md)`"
    assert led("[a](../docs/triggers.png)", "repository/experiments/x.md") == "[a](../../triggers.png)"
    assert led("[a](https://a.b/c) [b](#c)", "x.md") == "[a](https://a.b/c) [b](#c)"
    for path in ("experiments/survey.py", "benchmarks/results/scaling_cpu.md", "docs/faq.md", "docs/quickstart.png"):
        assert source(destination(path)) == path
    assert led("[a](../first_population.ipynb)", "how-to/x.md") == "[a](../first_population.md)"  # in the site a page


def test_what_a_page_links_to_becomes_part_of_the_site():
    found = files({"a.md": "[r](../experiments/replicate/README.md) [s](../experiments/launch/slurm_array.sh)"})
    assert "```bash\n#!" in found["repository/experiments/launch/slurm_array.sh.md"]
    assert "repository/experiments/replicate/findings.md" in found  # the README links to it
    assert found["repository/experiments/replicate/heat-map.png"] == TOP / "experiments/replicate/heat-map.png"
