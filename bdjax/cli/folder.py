"""Two commands about a folder of results: parse, call, print."""

from bdjax.cli.flags import Picked
from bdjax.store import location


def status(out: str, /, *, watch: bool = False) -> int:
    """Say how far the sweeps of a folder are, also while other processes work on them.

    Args:
      out: folder of the results, or its URL.
      watch: keep showing it until everything is finished.
    """
    from bdjax.sweep.status import show

    show(location.locate(out), watch=watch)
    return 0


def reproduce(
    results: str,
    /,
    picked: Picked,
    *,
    tolerance: float = 0.01,
    retrain: bool = False,
    imported: str | None = None,
    data_dir: str | None = None,
) -> int:
    """Run one record of a folder again, from its stored settings: identical, within tolerance, or different and why.

    The exit code is 1 where it is different.

    Args:
      results: folder of a run, or its URL.
      picked: the record.
      tolerance: largest difference of ACC, ASR and RA that passes, a fraction.
      retrain: also train again the network that was defended.
      imported: import folder the network came from.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
    """
    from bdjax.results import member, recreate
    from bdjax.results.reproduce import again, lines

    row = member.record(results, picked.facts(), statuses=("ok", "infeasible", "non_finite"))
    images = recreate.images_of(row, picked.dataset, data_dir)
    found = again(location.locate(results), row, images, tolerance=tolerance, retrain=retrain, folder=imported)
    print("\n".join(lines(found)))
    return 1 if found.verdict == "different" else 0
