"""What the pages link to outside docs/ becomes part of the site, so that a link works on a disk, in a checkout and in the site.

A page says ``[the table](../benchmarks/results/scaling_cpu.md)``, its way to the file in the repository. In the site that file is
a page or a download below ``repository/``, with the same path.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.generators.markdown import fenced, outside_code

ROOT = Path(__file__).parents[2]
PLACE = "repository/"
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".cff": "yaml", ".bib": "bibtex"}
_LINK = re.compile(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")
_CODE = re.compile(r"(`[^`]*`)")
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|/)")  # another site, a place on the same page


def links(text: str) -> Iterator[tuple[int, str]]:
    """The relative links of a page, with the number of their line; those in code are none."""
    for number, line in enumerate(outside_code(text), 1):
        for found in _LINK.finditer(_CODE.sub("", line)):
            if not _ELSEWHERE.match(found[2]):
                yield number, found[2]


def source(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if not uri.startswith(PLACE):
        return f"docs/{uri}"
    path = uri.removeprefix(PLACE)
    return path if path.endswith(".md") and not _shown(path.removesuffix(".md")) else path.removesuffix(".md")


def destination(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
        return f"{path.removesuffix('.ipynb')}.md" if path.endswith(".ipynb") else path  # a notebook becomes a page
    return f"{PLACE}{path}.md" if _shown(path) else f"{PLACE}{path}"


def _shown(path: str) -> bool:
    """Whether a file becomes a page that shows its text."""
    return Path(path).suffix in LANGUAGES


def relinked(text: str, lead: Callable[[str], str]) -> str:
    """A page with other relative links; those in code are none.

    Args:
      text: Markdown.
      lead: (path) -> path; an anchor is kept.
    """

    def one(found: re.Match[str]) -> str:
        if _ELSEWHERE.match(found[2]):
            return found[0]
        file, hash_, anchor = found[2].partition("#")
        return f"{found[1]}{lead(file)}{hash_}{anchor}{found[3]}"

    def prose(line: str) -> str:
        parts = _CODE.split(line)
        return "".join(part if i % 2 else _LINK.sub(one, part) for i, part in enumerate(parts))

    pairs = zip(text.splitlines(), outside_code(text), strict=True)
    return "\n".join(prose(line) if line == outside else line for line, outside in pairs)


def led(text: str, uri: str) -> str:
    """A page whose links lead into the site."""
    page = source(uri)

    def lead(file: str) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
        return posixpath.relpath(destination(path), posixpath.dirname(uri) or ".")

    return relinked(text, lead)


def files(pages: dict[str, str]) -> dict[str, str | Path]:
    """What the pages link to outside docs/, and what that links to: {path in the site: its Markdown, or the file to copy}.

    Args:
      pages: {path below docs/: Markdown}.

    Raises:
      FileNotFoundError: a link to something that is no file of the repository.
    """
    waiting = [(f"docs/{uri}", text) for uri, text in pages.items()]
    found: dict[str, str | Path] = {}
    while waiting:
        page, text = waiting.pop()
        for number, link in links(text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
            if path.startswith("docs/") or destination(path) in found:
                continue
            if path.startswith("..") or not (ROOT / path).is_file():
                raise FileNotFoundError(f"{page}:{number} links to {link}, which is no file of the repository")
            made = _made(path)
            found[destination(path)] = made
            if isinstance(made, str) and path.endswith(".md"):
                waiting.append((path, made))
    return found


def _made(path: str) -> str | Path:
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    if _shown(path):
        return f"# {path}\n\n{fenced(LANGUAGES[file.suffix], file.read_text(encoding='utf-8'))}"
    return file
