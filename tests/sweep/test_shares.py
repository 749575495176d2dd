"""What workers take of the machines of a cluster: an accelerator each, or cores and memory, so that no machine is overfilled."""

import pytest

from bdjax.sweep import shares
from bdjax.sweep.need import PROCESS, Need
from bdjax.sweep.shares import Share

GIB = 2**30


def need(member, fewest=1, at_once=1, name="a cell"):
    """A cell whose process needs 1 GiB and whose members need so many."""
    return Need(name, 0, int(member * GIB), fewest, at_once)


def machine(cpus=8, memory=64.0, **more):
    return {"CPU": float(cpus), "memory": memory * GIB, **more}


def room(machines, *needs, kind="CPU", most=None):
    found = shares.shares(machines, kind, needs, shares.largest(machines) if most is None else most * GIB)
    return {(share.amount, share.memory / GIB, share.cells): count for share, count in found.items()}


def test_what_a_cell_needs_counts_its_process_its_images_and_the_members_that_run_at_once():
    one = Need("a cell", images=100, member=1000, fewest=1, all=20)
    assert (one.device, one.least, one.most) == (1100, PROCESS + 150 + 1000, PROCESS + 150 + 20_000)


@pytest.mark.parametrize(
    ("machines", "kind"),
    [
        ([machine(), machine(GPU=4.0)], "GPU"),
        ([machine(TPU=8.0)], "TPU"),
        ([machine(cpus=0), machine()], "CPU"),
        ([machine(cpus=0)], None),
        ([], None),
    ],
)
def test_accelerators_are_used_where_there_are_any(machines, kind):
    assert shares.kind_of(machines) == kind


def test_a_worker_gets_an_accelerator_whatever_the_memory_of_its_machine():
    machines = [machine(GPU=4.0, memory=1), machine(GPU=2.0), machine()]
    assert shares.shares(machines, "GPU", [need(999)], 0) == {Share("GPU", 1): 6}
    assert Share("GPU", 1).options() == {"num_gpus": 1}
    assert Share("TPU", 1).options() == {"resources": {"TPU": 1}}


@pytest.mark.parametrize(
    ("machines", "needs", "expected"),
    [
        ([machine(cpus=7)], [need(1)], {(2, 2, None): 3}),  # two cores each
        ([machine(cpus=1)], [need(1)], {(1, 2, None): 1}),
        ([machine(memory=7)], [need(1), need(2)], {(2, 3, None): 2}),  # the largest cell decides: three times 3 GiB do not fit
        (
            [machine(), machine(memory=4)],
            [need(1), need(7)],
            {(2, 8, None): 4, (2, 2, (0,)): 2},
        ),  # small cells for small machines
        ([machine(memory=4), machine(cpus=0)], [need(1, 1, 20)], {(2, 4, None): 1}),  # as many members at once as fit it alone
        ([machine(memory=4), machine(memory=3)], [need(20)], {(2, 4, None): 1}),  # what fits nowhere is tried on the largest
        ([machine(memory=1)], [need(1)], {(2, 1, None): 1}),
        ([machine(memory=0)], [need(1)], {(2, 0, None): 4}),  # Ray was told of no memory
    ],
)
def test_memory_decides_as_well_as_cores_on_machines_without_accelerators(machines, needs, expected):
    assert room(machines, *needs) == expected


def test_a_large_cell_waits_for_the_large_machine_that_went_away():
    assert room([machine(memory=4)], need(1), need(7), most=64) == {(2, 2, (0,)): 2}
    assert room([machine(memory=4)], need(7), most=64) == {}


def test_ray_is_asked_for_cores_and_memory():
    assert Share("CPU", 2, 3 * GIB).options() == {"num_cpus": 2, "memory": 3 * GIB}
    assert str(Share("CPU", 2, 3 * GIB)) == "2 CPU and 3.0 GiB of memory" and str(Share("TPU", 1)) == "1 TPU"


@pytest.mark.parametrize(
    ("machines", "kind", "said"),
    [
        (
            [machine(memory=5)],
            "CPU",
            "large and 1 more need up to 41.0 GiB with one member at a time, of which the largest machine",
        ),
        ([machine(memory=45)], "CPU", None),
        ([machine(GPU=1.0, **{"accelerator_type:H100": 1.0})], "GPU", None),
        ([machine(TPU=4.0, **{"accelerator_type:TPU-V5LITEPOD": 1.0})], "TPU", "large needs up to 40.0 GiB"),
        ([machine(TPU=4.0, **{"accelerator_type:TPU-V4": 1.0})], "TPU", None),  # nothing is known
        ([machine(GPU=4.0)], "GPU", None),
    ],
)
def test_a_cell_that_fits_nowhere_is_said_in_one_line(machines, kind, said):
    found = shares.warnings(machines, kind, [need(9, name="small"), need(40, name="large")])
    assert [said in line for line in found] == ([] if said is None else [True])
