"""Whatever a command prints can be printed: in any encoding, with any path, to a full disk, to nobody."""

import io
import os
import subprocess
import sys

import pytest

from bdjax.cli import terminal


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "3 × 4 – é ≤ … │", b"3 x 4 - e <= ... |"),
        ("latin-1", "3 × 4 – é", b"3 \xd7 4 - \xe9"),
        ("cp1252", "→ 囲", b"-> ?"),
        ("utf-8", "out\udcff × 囲", b"out\xff \xc3\x97 \xe5\x9b\xb2"),
    ],
)
def test_what_an_encoding_lacks_is_replaced_by_what_is_nearest(monkeypatch, encoding, text, written):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with terminal.printable():
        print(text, end="")
    assert raw.getvalue() == b"" or raw.getvalue() == written
    sys.stdout.flush()
    assert raw.getvalue() == written and sys.stdout.errors == "strict"


def test_a_stream_that_is_closed_from_the_beginning_is_no_error(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with terminal.printable():
        print("nobody reads")
        print("nobody reads", file=sys.stderr)
        assert terminal.flushed() is None


PRINTING = (
    "import sys\nfrom bdjax.cli import main as cli\n"
    "cli._command = lambda arguments: print('a × b', arguments[1]) or 0\nsys.exit(cli.main())"
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full disk to write to")
def test_a_full_disk_and_a_plain_encoding():
    """One line where the output cannot be written; a table's characters, and a path that is no text, where it can."""

    source = PRINTING.replace("or 0", "or print(arguments[1], file=sys.stderr) or 0")

    def command(**options):
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run([sys.executable, "-c", source, "ls", b"out\xff"], env=environment, timeout=120, **options)

    with open("/dev/full", "w") as full:
        done = command(stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and done.stderr.endswith(b": No space left on device\n")
    done = command(capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a x b out\xff\n", b"out\\xff\n")
