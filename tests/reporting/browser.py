"""A headless browser, and what it shows of a page."""

import shutil
import subprocess
from html.parser import HTMLParser

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,  # starts a browser for every test
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium"),
]


class Tables(HTMLParser):
    """{table id: rows that are shown, each a list of texts}, what is said above the tables, and the choices of the form.

    Badges behind a name are no part of its text.
    """

    def __init__(self, text):
        super().__init__()
        self.tables, self.notes, self.chosen, self.cell, self.rows, self.hidden = {}, [], {}, None, None, False
        self.open, self.select, self.texts, self.in_badges = [], None, [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs["id"], [])
        elif tag == "tr":
            self.hidden = "hidden" in attrs
            if not self.hidden:
                self.rows.append([])
        elif tag in ("td", "th") or (tag == "p" and attrs.get("class") == "note" and "hidden" not in attrs):
            self.texts, self.cell = [], tag
        elif tag == "span" and attrs.get("class") == "badges":
            self.in_badges = True

    def handle_endtag(self, tag):
        self.in_badges &= tag != "span"
        if tag == self.cell:
            text = "".join(self.texts)
            if tag == "p":
                self.notes.append(text)
            elif not self.hidden:
                self.rows[-1].append(text)
            self.cell = None
        if tag == "table":
            self.rows = None

    def handle_data(self, text):
        if not self.in_badges:
            self.texts.append(text)


def browse(path, *options, choice=""):
    """Open a page in chromium; gives what it printed, after checking that no script failed and nothing was fetched."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"]
    flags += ["--virtual-time-budget=20000", f"--user-data-dir={path.parent / 'profile'}", *options]
    command = [CHROMIUM, "--headless", *flags, path.as_uri() + choice]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def shown(path, choice=""):
    return Tables(browse(path, "--dump-dom", choice=choice))
