"""The commands that run a grid or say what it would do: parse, call, print."""

import json as encoding
import sys
from typing import Annotated, Any

from bdjax.cli.flags import (
    Cells,
    CheckpointEvery,
    DataDir,
    Executed,
    GridFile,
    LogTo,
    Results,
    Scenario,
    execution_of,
    flag,
)
from bdjax.cli.report import report as write_report
from bdjax.cli.scenario import grid_of, pairs
from bdjax.errors import UserError, command
from bdjax.population import hosts
from bdjax.results.mitigation import Limits, checked
from bdjax.store import location
from bdjax.sweep.grid import Grid

QUICKSTART = Grid(
    dataset=("digits",),
    model=("cnn",),
    attack=("badnets",),
    defense=("ft", "fp", "mm_bd"),
    poison_ratio=(0.0, 0.05, 0.15),
    seeds=(0, 1, 2, 3),
    spc=(10,),
    width=16,
    epochs=25,
    batch=64,
    recipe={"lr": 0.1},  # a small network and few steps: ten times the survey's rate
)


def quickstart(*, out: Results = "bdjax-quickstart") -> int:
    """A whole experiment on handwritten digits in about a minute: 12 members, three defenses, table, figures, one HTML page.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run; the same command resumes.
    """
    return _run(QUICKSTART, out, None, Executed(), Limits(), page=True)


def run(
    scenario: Scenario,
    executed: Executed,
    limits: Limits,
    *,
    data_dir: DataDir = None,
    out: Results = "bdjax-results",
    tune: bool = True,
    checkpoint_every: CheckpointEvery = None,
    report: bool = False,
    log_to: LogTo = (),
) -> int:
    """Train one backdoored population and run every defense named on it; resumes what is in the folder.

    Args:
      scenario: what to run.
      executed: how.
      limits: what counts as mitigated in the table.
      data_dir: folder of the data archives.
      out: folder of the results, or a URL such as gs://bucket/run.
      tune: where the plan is longer than ten minutes, measure first what is fastest on a device of which nothing is remembered.
      checkpoint_every: seconds between two checkpoints of a cell that runs, from which a killed run goes on.
      report: also write figures and the HTML page.
      log_to: where curves of loss and speed go, beside the log file of the run.
    """
    options: dict[str, Any] = {"strict": True, "tune": tune, "checkpoint_every": checkpoint_every, "log_to": log_to}
    return _run(grid_of(scenario), out, data_dir, executed, limits, page=report, **options)


def sweep(
    file: GridFile = None,
    /,
    *,
    scenario: Scenario,
    cells: Cells,
    executed: Executed,
    limits: Limits,
    data_dir: DataDir = None,
    out: Results = "bdjax-results",
    tune: bool = True,
    checkpoint_every: CheckpointEvery = None,
    log_to: LogTo = (),
    ray: Annotated[str | None, flag("ADDRESS", "no cluster")] = None,
    workers: Annotated[int | None, flag("INT", "one per GPU or TPU, or per two cores")] = None,
    coordinator: Annotated[str | None, flag("HOST:PORT", "this process runs its cells alone")] = None,
    processes: Annotated[int | None, flag("INT", "what the cluster says")] = None,
    process: Annotated[int | None, flag("INT", "what the cluster says")] = None,
) -> int:
    """Run the grid of a file, or of the flags, always resuming.

    The same command may run several times at once with one --out, on one machine or on many: each takes cells that nobody works
    on.

    Args:
      file: Python file with a `grid` (and, for --scale small, a `small`), each a bdjax.Grid.
      scenario: what to run; beside a FILE these flags replace what it says, and the defaults are its own.
      cells: which cells of it.
      executed: how.
      limits: what counts as mitigated in the table.
      data_dir: folder of the data archives.
      out: folder of the results, or a URL such as gs://bucket/run.
      tune: where the plan is longer than ten minutes, measure first what is fastest on a device of which nothing is remembered.
      checkpoint_every: seconds between two checkpoints of a cell that runs, from which a killed run goes on.
      log_to: where curves of loss and speed go, beside the log file of the run.
      ray: address of a Ray cluster whose machines all see the folder of results: "auto", HOST:PORT or "local".
      workers: on the Ray cluster at once.
      coordinator: makes this one of several processes that run each cell together, its members over all their devices: HOST:PORT
        of the first one, or "auto" on a TPU pod or under SLURM.
      processes: how many there are.
      process: number of this one, from 0.
    """
    if coordinator is not None:
        if ray is not None:
            raise UserError("--ray and --coordinator are two ways to use many machines: give one")
        hosts.join(None if coordinator == "auto" else coordinator, processes, process)
    elif processes is not None or process is not None:
        raise UserError("--processes and --process go with --coordinator HOST:PORT")
    grid = _asked(file, cells, scenario)
    if workers is not None and ray is None:
        raise UserError("--workers are those of a Ray cluster: name it with --ray")
    kept = pairs(cells.only, "--only")
    options: dict[str, Any] = {"only": kept, "limit": cells.limit(), "tune": tune}
    options |= {"checkpoint_every": checkpoint_every, "log_to": log_to}
    return _run(grid, out, data_dir, executed, limits, ray=ray, workers=workers, **options)


def plan(
    file: GridFile = None,
    /,
    *,
    scenario: Scenario,
    cells: Cells,
    executed: Executed,
    data_dir: DataDir = None,
    tune: bool = True,
    budget: Annotated[float | None, flag("SECONDS", "60")] = None,
    refresh: bool = False,
    memory: bool = True,
    hardware: Annotated[str | None, flag("PLATFORM:KIND-NUMBER", "this machine")] = None,
    price: Annotated[float | None, flag("FLOAT", "no bill")] = None,
    json: bool = False,
) -> int:
    """Say what the grid of a file, or of the flags, costs before anything runs: cells, members, memory, images, device-hours.

    The images per second of each model and batch are measured and kept in a cache; `run` and `sweep` then use the fastest.

    Args:
      file: Python file with a `grid` (and, for --scale small, a `small`), each a bdjax.Grid.
      scenario: what would run; beside a FILE these flags replace what it says, and the defaults are its own.
      cells: which cells of it.
      executed: how.
      data_dir: folder of the data archives, which show which edition is at hand.
      tune: measure what is not in the cache.
      budget: seconds of measuring per model and batch.
      refresh: measure also what is in the cache.
      memory: compile the training of one and of two members to learn what a member needs.
      hardware: devices that are not here, such as tpu:v5e-8 or cuda:h200-8: their compiler estimates, nothing is measured.
        --target tpu:v5e-8 is the same.
      price: of a device-hour, in any currency.
      json: as JSON.
    """
    from bdjax.store.hashing import plain
    from bdjax.sweep.estimate import Measuring, overview
    from bdjax.sweep.plan_text import lines

    if hardware is not None and (budget is not None or refresh or execution_of(executed)):
        raise UserError("--hardware measures nothing: --budget, --refresh and the flags of an execution do not go with it")
    if not tune and (refresh or budget is not None):
        raise UserError("--no-tune measures nothing: --refresh and --budget do not go with it")
    found = overview(
        _asked(file, cells, scenario),
        execution=execution_of(executed),
        tuned=executed.tuned,
        measuring=Measuring(tune, 60.0 if budget is None else budget, refresh, memory),
        only=pairs(cells.only, "--only"),
        limit=cells.limit(),
        data_dir=data_dir,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        target=hardware,
        price=price,
    )
    print(encoding.dumps(plain(found), indent=2) if json else "\n".join(lines(found)))
    return 0


def check(
    file: GridFile = None,
    /,
    *,
    scenario: Scenario,
    cells: Cells,
    executed: Executed,
    data_dir: DataDir = None,
    out: Results = "bdjax-results",
) -> int:
    """Validate the grid of a file, or of the flags, without training: names, shapes, data, memory, the folder of results.

    Args:
      file: Python file with a `grid` (and, for --scale small, a `small`), each a bdjax.Grid.
      scenario: what would run; beside a FILE these flags replace what it says, and the defaults are its own.
      cells: which cells of it.
      executed: how.
      data_dir: folder of the data archives.
      out: folder of the results, or a URL such as gs://bucket/run.
    """
    from bdjax.sweep.check import INFEASIBLE, validate

    lines = validate(
        _asked(file, cells, scenario),
        out,
        data_dir=data_dir,
        execution=execution_of(executed),
        tuned=executed.tuned,
        only=pairs(cells.only, "--only"),
        limit=cells.limit(),
    )
    for line in lines:
        print(line if line.startswith(INFEASIBLE) else f"ok: {line}")
    return 0


def _asked(file: str | None, cells: Cells, scenario: Scenario) -> Grid:
    """The grid of a file with what the flags replace; without a file the grid that the flags stand for."""
    if file is None and cells.scale is not None:
        raise UserError(f"--scale {cells.scale} chooses between the grids of a file: name the file right after the command")
    return grid_of(scenario, None if file is None else _grid_in(file, cells.scale or "full"))


def _grid_in(file: str, scale: str) -> Grid:
    from bdjax.plugins.load import load_python

    name = "grid" if scale == "full" else "small"
    grid = getattr(load_python("sweep", file), name, None)
    if not isinstance(grid, Grid):
        raise UserError(f"{file} defines no {name!r} of type bdjax.sweep.grid.Grid")
    return grid


def _run(
    grid: Grid,
    out: str,
    data_dir: str | None,
    executed: Executed,
    limits: Limits,
    *,
    page: bool = False,
    ray: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> int:
    from bdjax.reporting.tables import markdown
    from bdjax.sweep.run import run as run_grid

    checked(limits)
    options |= {"data_dir": data_dir, "execution": execution_of(executed), "tuned": executed.tuned}
    if ray is None:
        records = run_grid(grid, out, **options)
    else:
        from bdjax.sweep import trackers
        from bdjax.sweep.ray import run_on_ray

        trackers.checked(options["log_to"], location.locate(out))  # before anything is asked of the cluster
        records = run_on_ray(grid, out, address=ray, workers=workers, **options)
    if not hosts.is_leader():
        return 0
    print(markdown(records, limits))
    failed = int((records["status"] == "failed").sum())
    if page:
        write_report(out, limits, data_dir=data_dir)
    else:
        print(f"records in {location.locate(out) / 'records'}; figures and a page: {command('report', out)}")
    if failed:
        print(f"bdjax: {failed} rows failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0
