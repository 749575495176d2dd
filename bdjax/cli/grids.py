"""The commands that run a grid or say what it would do: parse, call, print."""

import json as encoding
import sys
from typing import Any, Literal

from bdjax.cli.flags import Executed, Scenario, execution_of, grid_of, pairs
from bdjax.cli.report import report as write_report
from bdjax.errors import UserError
from bdjax.population import hosts
from bdjax.results.mitigation import Limits, checked
from bdjax.store import location
from bdjax.sweep.grid import Grid

QUICKSTART = Grid(
    dataset=("digits",),
    model=("cnn",),
    attack=("badnets",),
    defense=("ft", "fp", "clp"),
    poison_ratio=(0.0, 0.05, 0.1),
    seeds=(0, 1, 2, 3),
    spc=(10,),
    width=8,
    epochs=25,
    batch=64,
    recipe={"lr": 0.1},  # a small network and few steps: ten times the survey's rate
)


def quickstart(*, out: str = "bdjax-quickstart") -> int:
    """A whole experiment on handwritten digits in a few minutes: 12 members, three defenses, table, figures, one HTML page.

    Args:
      out: folder of the results, or a URL such as gs://bucket/run; the same command resumes.
    """
    return _run(QUICKSTART, out, None, Executed(), Limits(), page=True)


def run(
    scenario: Scenario,
    executed: Executed,
    limits: Limits,
    *,
    data_dir: str | None = None,
    out: str = "bdjax-results",
    report: bool = False,
) -> int:
    """Train one backdoored population and run every defense named on it; resumes what is in the folder.

    Args:
      scenario: what to run.
      executed: how.
      limits: what counts as mitigated in the table.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      out: folder of the results, or a URL such as gs://bucket/run.
      report: also write figures and the HTML page.
    """
    return _run(grid_of(scenario), out, data_dir, executed, limits, page=report, strict=True)


def sweep(
    file: str,
    /,
    scenario: Scenario,
    executed: Executed,
    limits: Limits,
    *,
    data_dir: str | None = None,
    out: str = "bdjax-results",
    scale: Literal["full", "small"] = "full",
    only: tuple[str, ...] = (),
    limit_cells: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> int:
    """Run the grid of a file, always resuming; scenario flags replace what the file says.

    The same command may run several times at once with one --out, on one machine or on many: each takes cells that nobody works
    on.

    Args:
      file: Python file with a `grid` (and, for --scale small, a `small`) made by bdjax.sweep.grid.Grid.
      scenario: what to run.
      executed: how.
      limits: what counts as mitigated in the table.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      out: folder of the results, or a URL such as gs://bucket/run.
      scale: which grid of the file.
      only: AXIS=VALUE ..., keeps the cells that match; axes are dataset, model, attack, defense and spc.
      limit_cells: number of cells to run at most.
      ray: address of a Ray cluster whose machines all see the folder of results: "auto", HOST:PORT or "local".
      workers: on the Ray cluster at once; default: one per GPU or TPU, or per two cores.
      coordinator: makes this one of several processes that run each cell together, its members over all their devices: HOST:PORT
        of the first one, or "auto" on a TPU pod or under SLURM.
      processes: how many there are, where the cluster does not say.
      process: number of this one, from 0, likewise.
    """
    if coordinator is not None:
        if ray is not None:
            raise UserError("--ray and --coordinator are two ways to use many machines: give one")
        hosts.join(None if coordinator == "auto" else coordinator, processes, process)
    elif processes is not None or process is not None:
        raise UserError("--processes and --process go with --coordinator HOST:PORT")
    grid = grid_of(scenario, _grid_in(file, scale))
    if workers is not None and ray is None:
        raise UserError("--workers are those of a Ray cluster: name it with --ray")
    kept, limit = pairs(only, "--only"), _at_least_one(limit_cells)
    return _run(grid, out, data_dir, executed, limits, only=kept, limit=limit, ray=ray, workers=workers)


def plan(
    scenario: Scenario,
    executed: Executed,
    *,
    file: str | None = None,
    data_dir: str | None = None,
    scale: Literal["full", "small"] = "full",
    only: tuple[str, ...] = (),
    limit_cells: int | None = None,
    tune: bool = True,
    budget: float | None = None,
    refresh: bool = False,
    memory: bool = True,
    json: bool = False,
) -> int:
    """Say what a grid costs before anything runs: cells, members, memory, images, device-hours.

    The images per second of each model and batch are measured and kept in a cache; `run` and `sweep` then use the fastest.

    Args:
      scenario: what would run.
      executed: how.
      file: Python file of a sweep; without one, the plan is of `run` with the same flags.
      data_dir: folder of the data archives, which show which edition is at hand; default: the environment's BDJAX_DATA_DIR.
      scale: which grid of the file.
      only: AXIS=VALUE ..., keeps the cells that match; axes are dataset, model, attack, defense and spc.
      limit_cells: number of cells at most.
      tune: measure what is not in the cache.
      budget: seconds of measuring per model and batch; default: 60.
      refresh: measure also what is in the cache.
      memory: compile the training of one and of two members to learn what a member needs.
      json: as JSON.
    """
    from bdjax.store.hashing import plain
    from bdjax.sweep.estimate import Measuring, lines, overview

    if not tune and (refresh or budget is not None):
        raise UserError("--no-tune measures nothing: --refresh and --budget do not go with it")
    found = overview(
        grid_of(scenario, _grid_in(file, scale) if file else None),
        execution=execution_of(executed),
        tuned=executed.tuned,
        measuring=Measuring(tune, 60.0 if budget is None else budget, refresh, memory),
        only=pairs(only, "--only"),
        limit=_at_least_one(limit_cells),
        data_dir=data_dir,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(encoding.dumps(plain(found), indent=2) if json else "\n".join(lines(found)))
    return 0


def check(scenario: Scenario, executed: Executed, *, data_dir: str | None = None, out: str = "bdjax-results") -> int:
    """Validate a configuration without training: names, shapes, data, memory, the folder of results.

    Args:
      scenario: what would run.
      executed: how.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      out: folder of the results, or a URL such as gs://bucket/run.
    """
    from bdjax.sweep.check import INFEASIBLE, validate

    how = execution_of(executed)
    for line in validate(grid_of(scenario), out, data_dir=data_dir, execution=how, tuned=executed.tuned):
        print(line if line.startswith(INFEASIBLE) else f"ok: {line}")
    return 0


def _grid_in(file: str, scale: str) -> Grid:
    from bdjax.plugins.load import load_python

    name = "grid" if scale == "full" else "small"
    grid = getattr(load_python("sweep", file), name, None)
    if not isinstance(grid, Grid):
        raise UserError(f"{file} defines no {name!r} of type bdjax.sweep.grid.Grid")
    return grid


def _at_least_one(limit_cells: int | None) -> int | None:
    if limit_cells is not None and limit_cells < 1:
        raise UserError(f"limit-cells {limit_cells} is not allowed; it is at least 1")
    return limit_cells


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
        from bdjax.sweep.ray import run_on_ray

        records = run_on_ray(grid, out, address=ray, workers=workers, **options)
    if not hosts.is_leader():
        return 0
    print(markdown(records, limits))
    failed = int((records["status"] == "failed").sum())
    if page:
        write_report(out, limits, data_dir=data_dir)
    else:
        print(f"records in {location.locate(out) / 'records'}; figures and a page: bdjax report {out}")
    if failed:
        print(f"bdjax: {failed} rows failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0
