"""What mkdocs calls while it builds: generated pages join the others, and links that leave docs/ stay in the site."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs takes it away again

from docs.generators import api, commands, methods, notebook, repository, sections  # noqa: E402

FILLED = {"Methods": methods.navigation, "Python API": api.navigation}


def on_config(config: Any) -> Any:
    """Put the generated pages into the menu."""
    config.nav = [_filled(entry) for entry in config.nav]
    return config


def _filled(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, inside),) = entry.items()
    if title in FILLED:
        return {title: FILLED[title]()}
    return {title: [_filled(one) for one in inside] if isinstance(inside, list) else inside}


def on_files(files: Files, *, config: Any) -> Files:
    """Add what is generated, and the files of the repository that pages link to."""
    made = {**methods.pages(), **commands.pages(), **api.pages(), **notebook.pages()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    written = {file.src_uri: _filled_in(file.content_string, file.src_uri) for file in files.documentation_pages()}
    for uri, found in repository.files(written).items():
        how = {"content": found} if isinstance(found, str) else {"abs_src_path": str(found)}
        files.append(File.generated(config, uri, **how))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Put in the sections that the page shows, and lead links to files of the repository into the site."""
    return repository.led(_filled_in(markdown, page.file.src_uri), page.file.src_uri)


def _filled_in(text: str, uri: str) -> str:
    return sections.filled(text, repository.source(uri))
