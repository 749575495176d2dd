"""Sections of other files that pages of the site show, so that they are written once.

A page says ``<!-- from CONTRIBUTING.md: Add a defense -->`` at the end of a line, and that section stands there, without its
heading, instead of the line: what the line says besides is read where pages are not generated.
"""

import posixpath
import re
from pathlib import Path

from docs.generators.repository import relinked

ROOT = Path(__file__).parents[2]
_SHOWN = re.compile(r"^.*<!-- from ([\w./-]+\.md): (.+) -->$", re.M)
_FILE = re.compile(r'^```python\n"""(\w+): ', re.M)  # an example that is a whole file, named by the first word of its docstring


def filled(text: str, page: str) -> str:
    """A page with the sections that it names.

    Args:
      text: Markdown.
      page: its path in the repository.

    Raises:
      ValueError: a file has no section of that name.
    """
    return _SHOWN.sub(lambda found: _section(found[1], found[2], page), text)


def _section(file: str, title: str, page: str) -> str:
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise ValueError(f"{page} shows the section {title!r} of {file}, which has none of that name")
    place = posixpath.dirname(page)
    moved = relinked(found[1].strip(), lambda link: posixpath.relpath(posixpath.join(posixpath.dirname(file), link), place))
    return _FILE.sub(lambda block: f"<!-- file: {block[1].lower()}.py -->\n{block[0]}", moved)
