"""A list of labels and the image files it speaks of must agree, file by file."""

import csv
import io
from collections.abc import Iterable

from bdjax.errors import UserError


def labels_of(where: str, listed: Iterable[tuple[str, int]], files: Iterable[str], place: str = "the archive") -> dict[str, int]:
    """Return {file: label} after checking that every file is listed exactly once and every listed file is there.

    Args:
      where: the list, for messages.
      listed: (file, label) of every line.
      files: the image files.
      place: where they lie, for messages.

    Raises:
      UserError: a file is listed twice, is not listed, or is listed and not there.
    """
    labels: dict[str, int] = {}
    for file, label in listed:
        if file in labels:
            raise UserError(f"{where} lists {file} twice (labels {labels[file]} and {label}).")
        labels[file] = label
    present = set(files)
    if unlisted := sorted(present - labels.keys()):
        raise UserError(f"{where} does not list {unlisted[0]}{_others(unlisted)}, which {place} holds.")
    if absent := sorted(labels.keys() - present):
        raise UserError(f"{where} lists {absent[0]}{_others(absent)}, which {place} does not hold.")
    return labels


def class_rows(where: str, text: str, classes: int) -> list[tuple[str, int]]:
    """Return (file, class) of every line of a table of comma- or semicolon-separated values with a line of headings.

    Args:
      where: the table, for messages.
      text: its content; the columns are ClassId, and Filename or Path.
      classes: how many there are.

    Raises:
      UserError: a column is missing, or a class is none of 0 to ``classes`` - 1.
    """
    heading = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in heading else ",")
    columns = {name.strip(): name for name in table.fieldnames or ()}
    file = columns.get("Filename", columns.get("Path"))
    if file is None or "ClassId" not in columns:
        raise UserError(f"{where} has the columns {table.fieldnames}; Filename and ClassId are needed.")
    rows = []
    for row in table:
        given = (row[columns["ClassId"]] or "").strip()
        if not given.isdecimal() or int(given) >= classes:
            raise UserError(f"{where} gives {row[file]} the class {given!r}; allowed are 0 to {classes - 1}.")
        rows.append(((row[file] or "").strip(), int(given)))
    return rows


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
