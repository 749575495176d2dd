"""The notebook as a page: its text, its code and what it printed and drew when it was last run."""

from pathlib import Path

import nbconvert

NOTEBOOK = Path(__file__).parents[1] / "first_population.ipynb"


def pages() -> dict[str, str | bytes]:
    """The page and its pictures, {path below docs/: content}."""
    exporter = nbconvert.MarkdownExporter()
    text, resources = exporter.from_filename(str(NOTEBOOK), resources={"output_files_dir": NOTEBOOK.stem})
    return {f"{NOTEBOOK.stem}.md": text, **resources["outputs"]}
