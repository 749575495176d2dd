"""A sweep on many machines: every Ray task is a worker that shares the folder of results with the others.

Ray places the workers, gives each its accelerator, or cores and memory, and starts one again whose machine went away; the driver
starts more when machines come. Cells are handed out by the leases of :mod:`bdjax.store.leases`, and results and snapshots go
straight to the folder, which every machine must see under the same path or URL: so a lost machine's cell goes on elsewhere.
"""

import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from bdjax.errors import UserError
from bdjax.population.compilations import keep_compilations
from bdjax.store import atomic, location
from bdjax.store.location import Location
from bdjax.sweep import shares
from bdjax.sweep.crew import Crew
from bdjax.sweep.grid import Grid
from bdjax.sweep.need import Need, needs_on
from bdjax.sweep.run import run
from bdjax.sweep.shares import Share
from bdjax.sweep.status import Watch, headline

RETRIES = 10  # of a worker whose machine or process went away
INTERVAL = 10.0  # seconds between two lines of progress


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
      workers: at once, at most; None = one per GPU or TPU of the cluster, and where it has none one per two cores, as far as a
        machine's memory goes.
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
        _work_through(ray, grid, out, workers, stream or sys.stderr, options)
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


def _work_through(ray: Any, grid: Grid, out: Location, workers: int | None, stream: TextIO, options: Mapping[str, Any]) -> None:
    """Let workers on the machines of a cluster do all they can."""

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    def start(share: Share) -> Any:
        task = ray.remote(max_retries=RETRIES, scheduling_strategy="SPREAD", **share.options())(_work)
        return task.remote(grid, str(out), share.cells, options)

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = shares.kind_of(machines)
    if kind is None:
        raise UserError("the Ray cluster has neither GPUs, TPUs nor CPUs to work on")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} is not allowed; it is at least 1")
    # In a process of its own, which ends with it: here and in a worker to come JAX must not have started on the CPU.
    estimate = ray.remote(num_cpus=0, max_calls=1)(_needs).remote(kind != "CPU", grid, options)
    try:
        needs = ray.get(estimate)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    for line in shares.warnings(machines, kind, needs):
        say(f"bdjax: {line}")
    crew = Crew(ray, start, kind, needs, workers, say)
    try:
        crew.look()
        _follow(crew, out, say)
    finally:
        crew.dismiss()


def _needs(accelerator: bool, grid: Grid, options: Mapping[str, Any]) -> list[Need]:
    """What the training cells need, computed on the CPU."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    return needs_on(accelerator, grid, options)


def _work(grid: Grid, out: str, cells: tuple[int, ...] | None, options: Mapping[str, Any]) -> None:
    """What a worker does; the rows stay in the folder."""
    import ray

    print(f"a worker begins on machine {ray.get_runtime_context().get_node_id()}", file=sys.stderr, flush=True)
    keep_compilations()
    run(grid, out, part=cells, **options)


def _follow(crew: Crew, out: Location, say: Callable[[str], None]) -> None:
    """Wait for the workers, let the crew look after the cluster, and say how far the folder is."""
    spoke, watch = time.monotonic(), None
    while crew.tasks and not crew.finished:
        crew.wait(1.0)
        if not crew.finished:
            crew.look()
        if time.monotonic() - spoke >= INTERVAL and location.is_folder(out / "sweeps"):
            watch, spoke = watch or Watch(out), time.monotonic()
            say(headline(watch.look(), str(out)))
