"""Who hears of a run: its log file, and the trackers that were asked for."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from bdjax import __version__
from bdjax.errors import quoted
from bdjax.store.location import Location
from bdjax.store.run_log import RunLog, new_name
from bdjax.sweep import trackers
from bdjax.sweep.progress import Listener


def listeners(out: Location, log_to: Sequence[str], about: dict[str, Any]) -> list[Listener]:
    """Return the listeners of a run of this process.

    Args:
      out: folder of results.
      log_to: trackers, as :func:`bdjax.sweep.trackers.checked` returned them.
      about: what is known of the run.

    Raises:
      UserError: a tracker does not begin.
    """
    name = new_name()
    tracking = [trackers.begun(tracker, out, name, about) for tracker in log_to]
    return [RunLog(out, name), *tracking]


def about_this_process() -> dict[str, Any]:
    """Return what a log says of the process: version, host, number, and the command where it is one of ours."""
    program, *words = sys.argv or [""]
    ours = PurePath(program).stem == "bdjax" or PurePath(program).parts[-2:] == ("bdjax", "__main__.py")
    return {
        "version": __version__,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": quoted("bdjax", *words) if ours else None,
    }
