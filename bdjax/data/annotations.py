"""A list of labels and the image files it speaks of must agree, file by file."""

from collections.abc import Iterable

from bdjax.errors import UserError


def labels_of(where: str, listed: Iterable[tuple[str, int]], files: Iterable[str]) -> dict[str, int]:
    """Return {file: label} after checking that every file is listed exactly once and every listed file is there.

    Args:
      where: the list, for messages.
      listed: (file, label) of every line.
      files: the image files.

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
        raise UserError(f"{where} does not list {unlisted[0]}{_others(unlisted)}, which the archive holds.")
    if absent := sorted(labels.keys() - present):
        raise UserError(f"{where} lists {absent[0]}{_others(absent)}, which the archive does not hold.")
    return labels


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
