"""A sweep on many machines: every Ray task is a worker that shares the folder of results with the others.

Ray places the workers, gives each its accelerator and starts one again whose machine went away. Cells are handed out by the
leases of :mod:`bdjax.store.leases`, and results go straight to the folder, which every machine must see under the same path
or URL.
"""

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from bdjax.errors import UserError
from bdjax.population.compilations import keep_compilations
from bdjax.store import atomic, location
from bdjax.store.location import Location
from bdjax.sweep.grid import Grid
from bdjax.sweep.run import run
from bdjax.sweep.status import Watch, headline

RETRIES = 10  # of a worker whose machine or process went away
INTERVAL = 10.0  # seconds between two lines of progress
CPUS = 2  # of a worker on machines without accelerators


def run_on_ray(
    grid: Grid,
    out: "str | Location",
    *,
    address: str,
    workers: int | None = None,
    stream: TextIO | None = None,
    **options: Any,
) -> Any:
    """Run a grid on a Ray cluster and return its records; the same call resumes after any interruption.

    Args:
      grid: what to run.
      out: folder of results, under the same path or URL on every machine.
      address: of the cluster: "auto" for the one this machine belongs to, "local" for this machine alone, or HOST:PORT.
      workers: at once, at most; None = one per GPU or TPU of the cluster, and one per two cores where it has none.
      stream: where progress is printed; None = stderr.
      options: further arguments of :func:`bdjax.sweep.run.run`.

    Raises:
      UserError: Ray is not installed, the cluster is not there, the grid is wrong, or cells are left that no worker could make.
    """
    try:
        import ray
    except ImportError:
        raise UserError('Ray is not installed; install it with: pip install "bdjax[ray]"') from None
    place = atomic.writable(out)
    out = place.absolute() if isinstance(place, Path) else place
    mine = not ray.is_initialized()
    if mine:
        _knock(address)
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    try:
        kind, each, room = share(ray.cluster_resources())
        count = room if workers is None else workers
        if count < 1:
            raise UserError(f"workers {count} is not allowed; it is at least 1")
        needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": each} if kind == "CPU" else {"resources": {kind: each}}
        work = ray.remote(max_retries=RETRIES, scheduling_strategy="SPREAD", **needs)(_work)
        waiting = [work.remote(grid, str(out), options) for _ in range(count)]
        print(f"{count} workers on {len(ray.nodes())} machines, each with {each:g} {kind}", file=stream or sys.stderr, flush=True)
        _follow(ray, waiting, out, stream or sys.stderr)
    finally:
        if mine:
            ray.shutdown()
    return run(grid, out, stream=stream, **options)  # finds everything done, and does what no worker could


def _knock(address: str) -> None:
    """Raise UserError at once where nobody listens at HOST:PORT: Ray itself tries for minutes."""
    host, found, port = address.rpartition(":")
    if found and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def share(resources: Mapping[str, float]) -> tuple[str, float, int]:
    """What a worker takes of a cluster and how many there is room for: (resource, amount each, workers)."""
    for kind in ("GPU", "TPU"):
        if resources.get(kind, 0) >= 1:
            return kind, 1, int(resources[kind])
    cpus = resources.get("CPU", 0)
    if cpus < 1:
        raise UserError("the Ray cluster has neither GPUs, TPUs nor CPUs to work on")
    each = min(CPUS, cpus)
    return "CPU", each, int(cpus // each)


def _work(grid: Grid, out: str, options: Mapping[str, Any]) -> None:
    """What a worker does; the rows stay in the folder."""
    keep_compilations()
    run(grid, out, **options)


def _follow(ray: Any, waiting: list[Any], out: Location, stream: TextIO) -> None:
    """Wait for the workers and say how far the folder is; a mistake of the user that one of them found is raised."""
    spoke, watch = time.monotonic(), None
    while waiting:
        done, waiting = ray.wait(waiting, timeout=1.0)
        for one in done:
            try:
                ray.get(one)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                print(f"bdjax: a worker failed: {str(error.cause).splitlines()[0]}", file=stream, flush=True)
            except ray.exceptions.RayError as error:  # its machine went away more often than it is tried again
                print(f"bdjax: a worker was lost: {type(error).__name__}", file=stream, flush=True)
        if time.monotonic() - spoke >= INTERVAL and location.is_folder(out / "sweeps"):
            watch, spoke = watch or Watch(out), time.monotonic()
            print(headline(watch.look(), str(out)), file=stream, flush=True)
