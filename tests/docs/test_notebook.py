"""The notebook runs from top to bottom, and what is stored of it is what it prints."""

import pytest

from tests.docs.pages import TOP
from tests.docs.test_python import alike

NOTEBOOK = TOP / "docs" / "first_population.ipynb"


def texts(cell):
    """What a cell printed or returned."""
    found = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())]
    return "\n".join(found)


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_it_said(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):  # of these tests: it computes as a reader's does
        monkeypatch.delenv(name, raising=False)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(again, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, now in zip(stored.cells, again.cells, strict=True):
        assert alike(texts(now), texts(before), exactly=False), before.source
