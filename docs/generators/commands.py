"""The reference of the command line: what the help of each command prints."""

import contextlib
import io
import os
from unittest import mock

from bdjax.cli.examples import EXAMPLES
from bdjax.cli.main import COMMANDS, main
from docs.generators.markdown import fenced

WIDTH = 110  # characters of a line of help

TOP = f"""# Command reference

This page is what the commands themselves print with `--help`. An error is one line that says what was given and what is allowed;
with `BDJAX_DEBUG=1` in the environment the traceback comes before it. Ctrl-C ends any command within seconds, a second one at
once.

| exit code | meaning |
|---:|---|
| 0 | all is well |
| 1 | a cell failed, or a record is not reproduced |
| 2 | a mistake in the command, or something that the system refuses |
| 70 | an error that nobody foresaw: please report it |
| 130, 143 | interrupted, terminated; the same command goes on where it stopped |

{fenced("console", "bdjax --help")}"""


def pages() -> dict[str, str]:
    """The page, {path below docs/: Markdown}."""
    return {"reference/commands.md": "\n\n".join([TOP, *(_command(name) for name in COMMANDS)])}


def _command(name: str) -> str:
    text = shown(name).partition("\nexample:")[0]
    usage, _, rest = text.partition("\n\n")
    return "\n\n".join([f"## {name}", "For example:", fenced("console", EXAMPLES[name]), fenced("text", f"{usage}\n\n{rest}")])


def shown(name: str) -> str:
    """What `bdjax NAME --help` prints on a wide terminal without colours."""
    printed = io.StringIO()
    plain = mock.patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1")
    with plain, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
