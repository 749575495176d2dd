"""What a plan for devices that are not here says of time and money; the numbers are made up."""

import dataclasses

import pytest

from bdjax.sweep import estimate, plan_text
from bdjax.sweep.grid import Grid


@pytest.fixture(scope="module")
def plan():
    grid = Grid(dataset=("digits",), model=("cnn",), attack=("badnets",), defense=("ft",), seeds=range(4), poison_ratio=(0.1,))
    found = estimate.overview(dataclasses.replace(grid, width=4), measuring=estimate.Measuring(tune=False, memory=False))
    (cell,) = found.cells

    def of(devices, hours, price=None):
        cells = (cell._replace(execution=cell.execution._replace(devices=devices)),)
        target = f"tpu:v5e-{devices}"
        return plan_text.lines(found._replace(cells=cells, training_hours=hours, defense_hours=0.0, target=target, price=price))

    return of


@pytest.mark.parametrize(("hours", "bill"), [(0.1, "0.12"), (1e-5, "1.2e-05"), (1000, "1,200")])
def test_a_small_bill_is_no_zero(hours, bill, plan):
    assert f"at 1.2 a device-hour: {bill}" in plan(8, hours, price=1.2)


def test_days_are_those_of_all_devices_together(plan):
    assert "in all at least 960 device-hours, 5 days of 8 devices" in plan(8, 960)
    assert not [line for line in plan(8, 960) if "a device-hour" in line]  # without a price there is no bill


@pytest.mark.parametrize(("devices", "told"), [(4, 0), (2, 0), (3, 1), (8, 1)])
def test_devices_that_idle_are_named(devices, told, plan):
    line = f"  devices: 4 members do not fill {devices}; the time of idle ones is not counted"
    assert plan(devices, 1.0).count(line) == told
