"""The program of a cell in segments, so that a killed one goes on where it was kept."""

import functools
from collections.abc import Callable
from typing import Any

from bdjax.population import Execution, segments
from bdjax.population.segments import Pace
from bdjax.population.snapshots import Misfit, Snapshot
from bdjax.store import provenance
from bdjax.store.running import Keeper
from bdjax.sweep.cells import Attacked


def run(
    function: Callable[..., Any],
    stacked: Any,
    attacked: Attacked,
    execution: Execution,
    keeper: Keeper,
    resumed: Callable[[Snapshot], None],
) -> provenance.Timed:
    """Run the program of a cell from its beginning, or from the newest checkpoint of an earlier run.

    Args:
      function: of one member.
      stacked: the members.
      attacked: the training cell on the device, whose data all members share.
      execution: how.
      keeper: of this cell and these members.
      resumed: hears where it goes on, if it does.

    Returns:
      The result, and its seconds with those of the parts that earlier runs computed.

    Raises:
      Abandoned: another process has taken the cell over, and goes on with it.
    """
    found = keeper.latest()
    if found is not None:
        resumed(found)

    def call(found: Snapshot | None) -> Any:
        pace = Pace(attacked.checkpoint_every)
        lost = functools.partial(attacked.lost, keeper.cell.name)
        shared = (attacked.data,)
        return segments.run(function, stacked, shared, execution, keeper=keeper, pace=pace, kept=found, abandoned=lost)

    def going_on() -> Any:
        try:
            return call(found)
        except Misfit as reason:
            keeper.refuse(str(reason))
            return call(None)

    with keeper:
        timed = provenance.timed(going_on)
    return timed._replace(seconds=timed.seconds + keeper.earlier)
