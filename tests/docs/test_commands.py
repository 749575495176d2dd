"""Every command that a page shows is parsed by the command line's own parser, and what it names exists; nothing is run."""

import functools
import inspect
import re
import shlex
import tomllib

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.cli import main as cli
from bdjax.cli.scenario import grid_of
from bdjax.data import DATASETS
from bdjax.errors import UserError
from bdjax.sweep import expand
from tests.docs.gcloud import parsed
from tests.docs.pages import TOP, blocks, generated, written

LANGUAGES = {"python", "console", "bash", "text", "json", "bibtex"}
EXTRAS = set(tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"])
TOOLS = {"pytest", "ruff", "mypy", "lint-imports", "mkdocs"}


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line of bdjax and returns what its function would have been given."""
    given = []

    def seen(function):
        @functools.wraps(function)
        def instead(*args, **kwargs):
            given.append(inspect.signature(function).bind(*args, **kwargs).arguments)
            return 0

        return instead

    monkeypatch.setattr(cli, "COMMANDS", {name: seen(function) for name, function in cli.COMMANDS.items()})

    def parsed(words):
        given.clear()
        try:
            assert cli.main(words) == 0, words
        except SystemExit as left:
            assert left.code == 0, words
        return given[0] if given else {}

    return parsed


def lines(block):
    """The commands of a block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def shown(pages):
    return [block for block in blocks(pages, "console", "bash") if block.note != "not run"]


def test_a_block_says_what_language_it_is():
    wrong = [(block.page, block.line, block.language) for block in blocks(written()) if block.language not in LANGUAGES]
    assert not wrong


@pytest.mark.parametrize("page", sorted({block.page for block in shown(written())}))
def test_commands_of_a_page_are_understood(page, parse, capsys):
    for block in shown({page: written()[page]}):
        for words in lines(block):
            understand(words, parse)


def test_commands_of_generated_pages_are_understood(parse, capsys):
    commands = [words for block in shown(generated()) for words in lines(block)]
    assert len(commands) > 50
    for words in commands:
        understand(words, parse, build=False)


def understand(words, parse, build=True):
    name, *rest = words
    if name == "bdjax":
        scenario = parse(rest)
        if build:
            buildable(scenario)
    elif name in ("python", "python3") and rest[0] == "-m":
        assert (TOP / (rest[1].replace(".", "/") + ".py")).is_file(), words
    elif name in ("python", "python3", "sbatch", "bash"):
        file = next(word for word in rest if not word.startswith("-"))
        assert (TOP / file).is_file(), words
    elif name == "gcloud":
        parsed(rest)
    elif name == "pip":
        asked = [extra for word in rest if (found := re.search(r"(?:^\.|bdjax)\[(.+)\]", word)) for extra in found[1].split(",")]
        assert rest[0] == "install" and set(asked) <= EXTRAS, words
    else:
        assert name in TOOLS, words


def buildable(given):
    """Methods and settings exist, where the command names nothing of the reader's own."""
    if "scenario" in given and given.get("file") is None and given["scenario"].imported is None:
        grid = grid_of(given["scenario"])
        names = (*grid.model, *grid.attack, *grid.defense)
        if set(grid.dataset) <= set(DATASETS) and not any(".py:" in name for name in names):
            expand.cells(grid)


def test_an_unknown_flag_or_setting_fails(parse, capsys):
    with pytest.raises(AssertionError):
        parse(["run", "--defence", "ft"])
    with pytest.raises(UserError, match="epocs"):
        buildable(parse(["run", "--defense", "ft", "--config", "ft.epocs=3"]))
    assert parse(["ls", "attacks"]) and ATTACKS


def test_the_readmes_first_two_bash_blocks_are_those_that_ci_runs():
    first, second = [block.text for block in blocks({"README.md": written()["README.md"]}, "bash")][:2]
    assert first == "pip install .\nbdjax quickstart\n"
    assert second == 'pip install ".[test]"\npytest -n 2\n'
