"""LaTeX tables: every row, nothing that LaTeX would take for a command."""

import re

from bdjax.reporting import html, tables
from bdjax.reporting.latex import escape, latex


def test_every_row_has_every_column(records):
    printed = tables.full(records)
    text = latex(printed, "Results", "tab:x")
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
    assert len(rows) == len(printed.rows) and {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(printed.heads)}
    assert r"91.5 {\scriptsize [90.0, 93.0]}" in text and r"grad\_prune$\dagger$" in text and r"\label{tab:x}" in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 1


def test_special_characters():
    assert escape("a_b & 5 % {x} \\ $1 #2 ~^ †") == (
        r"a\_b \& 5 \% \{x\} \textbackslash{} \$1 \#2 \textasciitilde{}\textasciicircum{} $\dagger$"
    )


def test_no_bare_special_character_is_left(records):
    body = latex(tables.full(records), "Results", "tab:x").splitlines()[6:-1]
    assert not [line for line in body if re.search(r"(?<!\\)[%#_]", line)]


def test_both_tables_lie_beside_the_page(records, tmp_path, sketched):
    html.build(tmp_path, records)
    assert (tmp_path / "table.tex").read_text() == latex(
        tables.full(records), "Results per scenario and defense", "tab:scenarios"
    )
    assert "grad" in (tmp_path / "leaderboard.tex").read_text()
