"""A plan as text."""

from bdjax import population
from bdjax.data.room import size_text
from bdjax.population import targets
from bdjax.sweep.estimate import Overview, Training


def lines(found: Overview) -> list[str]:
    """A plan as text."""
    text = [
        *([f"planned for {found.target}, by its compiler: estimates, nothing was measured"] if found.target else []),
        f"{found.training_cells} training cells, {found.defense_cells} defense cells: {found.compile_buckets} compile buckets",
        f"{found.members:,} members to {'train' if found.images else 'measure'}, "
        f"{found.experiments:,} experiments (a member under a defense)",
        *([found.about] if found.about else []),
    ]
    for cell in found.cells:
        name = f"{cell.dataset} / {cell.model} / {cell.attack}"
        trained = f"{cell.epochs} epochs of batch {cell.batch}, {cell.images:,} images" if cell.epochs else "imported"
        work = f"{cell.members} members, {trained}"
        text.append(f"{name}: width {cell.width}, {cell.goal}, {work}")
        text += [f"  infeasible, and not counted: {reason}" for reason in cell.infeasible]
        text.append(f"  memory: {_memory(cell)}")
        text.append(f"  execution: {cell.origin}: {population.named(cell.execution)}")
        if found.target and cell.members % cell.execution.devices:
            text.append(
                f"  devices: {cell.members} members do not fill {cell.execution.devices}; the time of idle ones is not counted"
            )
        rate = "images per second not measured" if cell.rate is None else f"{cell.rate:,.0f} images/s ({cell.measured})"
        text.append(f"  training: {rate}{_hours(cell.hours)}")
        if cell.compile_seconds is not None:
            text.append(f"  compilation: {cell.compile_seconds:.0f} s for the training program, on this machine")
        for run in cell.defenses:
            spc = "" if run.spc is None else f", spc {run.spc}"
            seen = "not estimated" if run.images is None else f"at least {run.images:,} images{_hours(run.hours)}"
            text.append(f"  {run.defense}{spc}: {run.members} members, {seen}")
    total = (
        "hours not known: images per second are measured without --no-tune"
        if found.training_hours is None
        else f"{found.training_hours:.3g} device-hours"
    )
    text.append(f"training in all: {found.images:,} images, {total}")
    if found.defense_hours is not None and found.defense_cells > found.not_estimated:
        text.append(f"defenses in all: at least {found.defense_hours:.3g} device-hours, as if at the rate of training")
    if found.not_estimated:
        text.append(f"not estimated: {found.not_estimated} defense cells, whose configuration names no epochs")
    text += _bill(found)
    text.append("compilation and evaluation come on top; nothing that is already recorded is subtracted")
    return text


def _bill(found: Overview) -> list[str]:
    """How long the devices of a target are busy, and what that costs at the user's price."""
    if found.training_hours is None or found.defense_hours is None:
        return []
    hours, said = found.training_hours + found.defense_hours, []
    if found.target:
        count = targets.parse(found.target).devices
        said.append(f"in all at least {hours:,.3g} device-hours, {hours / count / 24:,.3g} days of {count} devices")
    if found.price is not None:
        bill = hours * found.price
        said.append(f"at {found.price:g} a device-hour: " + (f"{bill:,.0f}" if bill >= 100 else f"{bill:.3g}"))
    return said


def _memory(cell: Training) -> str:
    small = f"{size_text(cell.parameter_bytes)} of parameters and momentum"
    if cell.member_bytes is None or cell.members_per_device is None:
        return f"per member {small}, activations not counted"
    return f"per member {size_text(cell.member_bytes)} ({small}); {cell.members_per_device:,} members fit a device"


def _hours(hours: float | None) -> str:
    return "" if hours is None else f", {hours:.3g} device-hours"
