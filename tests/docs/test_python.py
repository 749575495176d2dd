"""Every block of Python that a page shows runs, in the order of the page, and prints what the page says it prints."""

import contextlib
import io
import json
import re

import pytest

from bdjax.cli import main as cli
from tests.docs.pages import blocks, written
from tests.docs.test_commands import lines

NUMBER = re.compile(r"\d+\.\d+")
PAGES = sorted({block.page for block in blocks(written(), "python")} - {"CONTRIBUTING.md"})
SLOW = sorted({block.page for block in blocks(written(), "python") if block.note == "slow"} - {"README.md"})
OWN = sorted({block.page for block in blocks(written(), "python") if block.note == "file"} - {"docs/how-to/many-machines.md"})


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))


def run(page, train):
    """Run the blocks of a page; those that train only if asked. Returns what is left of its names."""
    found, names = blocks({page: written()[page]}), {}
    for i, block in enumerate(found):
        if block.language != "python" or block.note == "not run" or (block.note == "slow" and not train):
            continue
        if block.note == "file":
            with open(block.about, "w", encoding="utf-8") as file:
                file.write(block.text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names if block.note != "file" else {"__name__": "mine"})
        told = found[i + 1].text if i + 1 < len(found) and found[i + 1].language == "text" else None
        if told is not None:
            assert alike(printed.getvalue(), told, exactly=block.note != "slow"), (page, block.line, printed.getvalue())
    return names


def alike(printed, told, exactly):
    """Whether a block printed what its page says: to the letter, or but for fractions, which depend on the machine."""
    if not exactly:
        printed, told = (re.sub("[ ─═]+", " ", NUMBER.sub("#", text)) for text in (printed, told))
    return printed.strip() == told.strip()


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page):
    run(page, train=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_python_that_trains_runs(page, tmp_path):
    run(page, train=True)
    if "bdjax.report(" in written()[page]:
        assert (tmp_path / "results" / "index.html").exists()


def test_the_readmes_python_is_run_as_part_of_get_started():
    shown = [block.text for block in blocks({"": written()["docs/get-started.md"]}, "python")]
    assert {block.text for block in blocks({"": written()["README.md"]}, "python")} <= set(shown)


@pytest.mark.parametrize("page", OWN)
def test_a_method_of_ones_own_can_run(page, capsys):
    """The check that the page itself shows."""
    run(page, train=False)
    commands = [words for block in blocks({page: written()[page]}, "console") for words in lines(block)]
    (check,) = [words for words in commands if words[:2] == ["bdjax", "check"]]
    assert cli.main(check[1:]) == 0, capsys.readouterr().err


def test_json_is_json():
    found = blocks(written(), "json")
    assert found and all(isinstance(json.loads(block.text), dict) for block in found)
