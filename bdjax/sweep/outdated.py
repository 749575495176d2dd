"""Records of a folder that no longer count because a method has a later edition: said before they are made again."""

from collections import Counter
from collections.abc import Sequence

from bdjax.store import location, records
from bdjax.store.location import Location
from bdjax.sweep import editions
from bdjax.sweep.pending import Work


def lines(works: Sequence[Work], out: Location) -> list[str]:
    """What of a folder was made with earlier editions of the methods that are asked for, in lines.

    Args:
      works: what is asked for.
      out: folder of the sweep.
    """
    before = {name for work in works for earlier in work.earlier.values() for name in earlier}
    if not before:
        return []
    there = {path.parent.name for path in location.versions(out / "records", "*/*.parquet")} & before
    counted: Counter[str] = Counter()
    for cell in sorted(there):
        for _, row in records.read_cell(out, cell):
            counted[editions.said(editions.changed(row["config"]))] += 1
    return [
        f"{count} record{'s' if count > 1 else ''} of {out} {'were' if count > 1 else 'was'} {text}: not counted as finished, "
        "made again"
        for text, count in counted.items()
        if text
    ]
