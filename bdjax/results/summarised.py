"""Columns of lists of runs, every list in a few numbers, many at once."""

import concurrent.futures
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.results.intervals import Summary, summaries

if TYPE_CHECKING:
    import polars as pl

AT_ONCE = 1000  # groups of runs whose resamples are in memory together, in each thread
SORTED_AT_ONCE = 50  # likewise where runs have several strata: each group is sorted by itself, which threads do side by side


def summarised(lists: "pl.Series", tasks: "pl.Series | None", trimmed: bool = True) -> Summary:
    """The summary of each list of runs, as arrays; ``tasks`` are their strata.

    Lists whose strata have the same sizes are summarised together: the bootstrap draws the same runs of all of them.
    """
    sizes = lists.list.len().to_numpy().astype(np.int64)
    flat, starts = lists.explode().drop_nulls().to_numpy(), np.cumsum(sizes) - sizes
    if tasks is not None:
        strata = tasks.explode().drop_nulls().to_physical().to_numpy()
        flat_list = np.repeat(np.arange(len(sizes)), sizes)
        order = np.lexsort((strata, flat_list))
        flat, strata = flat[order], strata[order]
    alike: dict[tuple[int, ...], list[int]] = {}
    for i in np.flatnonzero(sizes).tolist():
        part = slice(starts[i], starts[i] + sizes[i])
        key = (int(sizes[i]),) if tasks is None else tuple(np.unique(strata[part], return_counts=True)[1].tolist())
        alike.setdefault(key, []).append(i)
    parts = []
    for key, places in alike.items():
        size = AT_ONCE if len(key) == 1 else SORTED_AT_ONCE
        parts += [(key, np.array(places[i : i + size])) for i in range(0, len(places), size)]

    def summarise(part: tuple[tuple[int, ...], Any]) -> Summary:
        key, at = part
        return summaries(flat[starts[at, None] + np.arange(sum(key))], key, trimmed=trimmed)

    found = {name: np.full(len(sizes), np.nan) for name in ("mean", "iqm", "low", "high")}
    with concurrent.futures.ThreadPoolExecutor() as threads:  # NumPy works outside the interpreter's lock
        for (_, at), one in zip(parts, threads.map(summarise, parts), strict=True):
            for name, values in found.items():
                values[at] = getattr(one, name)
    return Summary(sizes, **found)
