r"""The tables as LaTeX, for papers: \usepackage{booktabs,longtable}."""

from bdjax.reporting.tables import Printed, split_interval

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "<": r"\textless{}", ">": r"\textgreater{}", "≥": r"$\geq$",
}  # fmt: skip
_TABLE = str.maketrans(_ESCAPED)


def latex(printed: Printed, caption: str, label: str) -> str:
    """A table that breaks over pages; intervals stand small beside their values, notes and what is constant under the caption.

    Args:
      printed: the table.
      caption: plain text.
      label: for references.
    """
    kinds = "".join("r" if numeric else "l" for numeric in printed.numeric)
    heads = " & ".join(escape(head) for head in printed.heads)
    constants = ", ".join(f"{key} {value}" for key, value in printed.constants.items())
    about = " ".join([caption + ".", *([f"All rows: {constants}."] if constants else []), *printed.notes])
    lines = [
        r"% \usepackage{booktabs,longtable}",
        rf"\begin{{longtable}}{{@{{}}{kinds}@{{}}}}",
        rf"\caption{{{escape(about)}}}\label{{{label}}}\\",
        rf"\toprule {heads} \\ \midrule \endfirsthead",
        rf"\toprule {heads} \\ \midrule \endhead",
        r"\bottomrule \endlastfoot",
    ]
    lines += [" & ".join(_cell(cell.text) for cell in row) + r" \\" for row in printed.rows]
    return "\n".join([*lines, r"\end{longtable}", ""])


def _cell(text: str) -> str:
    value, interval = split_interval(text)
    return escape(value) + (rf" {{\scriptsize {escape(interval)}}}" if interval else "")


def escape(text: str) -> str:
    """Plain text as LaTeX."""
    return text.translate(_TABLE)
