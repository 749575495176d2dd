"""The examples of CONTRIBUTING.md as files."""

import re
from pathlib import Path

TOP = Path(__file__).parents[1]


def blocks():
    """Its Python blocks, {name: text}, by the first word of their docstring."""
    found = re.findall(r"^```python\n(.*?)^```", (TOP / "CONTRIBUTING.md").read_text(), re.M | re.S)
    return {re.match(r'"""(\w+)', block)[1].lower(): block for block in found}


def written(folder, *names):
    """Write some of them, all where none is named, and return the folder."""
    for name, block in blocks().items():
        if not names or name in names:
            (folder / f"{name}.py").write_text(block)
    return folder
