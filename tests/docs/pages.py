"""The pages that people read, as the tests see them: their text, and their blocks of code with what stands above each."""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

from docs.generators import commands, methods
from docs.generators.sections import filled

TOP = Path(__file__).parents[2]
NOTE = re.compile(r"<!-- (not run|slow|file): (.+?) -->")


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str
    note: str  # "not run", "slow", "file" or ""
    about: str  # the reason, or the name of the file


@functools.cache
def written() -> dict[str, str]:
    """The pages written by hand, {path in the repository: Markdown}."""
    paths = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]
    texts = {str(path.relative_to(TOP)): path.read_text(encoding="utf-8") for path in paths}
    found = {page: filled(text, page) for page, text in texts.items()}
    notebook = json.loads((TOP / "docs" / "first_population.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return {**found, "docs/first_population.md": "\n\n".join(cells)}


@functools.cache
def generated() -> dict[str, str]:
    """The pages that are generated, likewise; those of Python functions and of other files are left to mkdocs."""
    return {f"docs/{path}": text for path, text in {**methods.pages(), **commands.pages()}.items()}


def blocks(pages: dict[str, str], *languages: str) -> list[Block]:
    """The blocks of some languages, all if none is named."""
    found = [block for page, text in pages.items() for block in _blocks(page, text)]
    return [block for block in found if not languages or block.language in languages]


def _blocks(page: str, text: str) -> list[Block]:
    found, above, start = [], "", None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"```(.*)$", line)
        if start is not None and fence:
            begun, language, note, lines = start
            found.append(Block(page, begun, language, "\n".join(lines) + "\n", *note))
            start = None
        elif start is not None:
            start[3].append(line)
        elif fence:
            note = NOTE.fullmatch(above)
            start = (number, fence[1].strip(), note.groups() if note else ("", ""), [])
        elif line.strip():
            above = line.strip()
    assert start is None, f"{page}: the block of line {start and start[0]} does not end"
    return found
