"""The crew of a sweep on a cluster whose machines come and go, with a made-up Ray."""

import types

import pytest

from bdjax.errors import UserError
from bdjax.sweep import crew as crews
from bdjax.sweep.crew import Crew
from bdjax.sweep.need import Need

GIB = 2**30
NEEDS = [Need("small", 0, GIB, 1, 1), Need("large", 0, 7 * GIB, 1, 1)]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Ray:
    """Machines by name and their gigabytes; what tasks came to; which were cancelled."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, **machines):
        self.machines, self.ends, self.cancelled = machines, {}, []

    def nodes(self):
        return [
            {"NodeID": name, "Alive": size is not None, "Resources": {"CPU": 2.0, "memory": float((size or 0) * GIB)}}
            for name, size in self.machines.items()
        ]

    def wait(self, tasks, num_returns=1, timeout=None):
        ended = [task for task in tasks if task in self.ends][:num_returns]
        return ended, [task for task in tasks if task not in ended]

    def get(self, task):
        if self.ends[task] is not None:
            raise self.ends[task]

    def cancel(self, task):
        self.cancelled.append(task)


@pytest.fixture(autouse=True)
def at_every_look(monkeypatch):
    monkeypatch.setattr(crews, "LOOK", 0.0)


def crew_of(ray, needs=NEEDS[:1], workers=None):
    said, started = [], []

    def start(share):
        started.append(share)
        return len(started) - 1

    return Crew(ray, start, "CPU", needs, workers, said.append), started, said


def test_a_machine_that_comes_gets_a_worker_and_one_that_goes_costs_none():
    ray = Ray(a=8, b=8)
    crew, started, said = crew_of(ray)
    crew.look()
    crew.look()
    assert len(started) == 2
    assert said == ["2 workers on 2 machines: 2 with 2 CPU and 2.0 GiB of memory each"]
    ray.machines["a"] = None  # its task waits for a place
    crew.look()
    ray.machines["c"] = 8  # where it is placed
    crew.look()
    assert len(started) == 2
    ray.machines["d"] = 8
    crew.look()
    assert len(started) == 3 and said[1:] == ["1 more worker on 3 machines: 1 with 2 CPU and 2.0 GiB of memory each"]


def test_no_more_workers_than_were_asked_for_and_as_many_so_that_a_cluster_may_grow():
    ray = Ray(a=8)
    crew, started, _ = crew_of(ray, workers=3)
    crew.look()
    assert len(started) == 3  # two of them wait
    ray.machines |= {"b": 8, "c": 8, "d": 8}
    crew.look()
    assert len(started) == 3
    few, started, _ = crew_of(ray, workers=1)
    few.look()
    assert len(started) == 1


def test_a_worker_that_comes_to_its_end_is_the_end_of_all_and_those_that_wait_are_cancelled():
    ray = Ray(a=8, b=8, c=8)
    crew, _, _ = crew_of(ray)
    crew.look()
    ray.ends[1] = None
    crew.wait(0)
    assert crew.finished
    ray.ends[0] = None
    crew.dismiss()
    assert ray.cancelled == [2] and not crew.tasks


def test_small_machines_work_on_small_cells_and_the_large_ones_are_waited_for():
    ray = Ray(a=8, b=4)
    crew, started, said = crew_of(ray, NEEDS)
    crew.look()
    assert [share.cells for share in started] == [None, (0,)]
    ray.ends[1] = None
    crew.wait(0)
    ray.machines["a"] = None
    for _ in range(2):
        crew.look()
    assert not crew.finished and len(started) == 2  # no other for what is done
    assert said[1:] == ["bdjax: no machine of the cluster has room for a worker any more: going on when one comes"]
    ray.machines["c"] = 8
    crew.look()
    ray.ends[0] = None  # placed there
    crew.wait(0)
    assert crew.finished


def test_a_worker_that_was_given_up_is_started_again_when_a_machine_comes():
    ray = Ray(a=8)
    crew, started, said = crew_of(ray)
    crew.look()
    ray.ends[0] = RayTaskError(OSError("no disk\nmore"))
    crew.wait(0)
    assert said[1:] == ["bdjax: a worker failed: no disk"]
    crew.look()
    assert len(started) == 1 and not crew.tasks
    ray.machines["b"] = 8
    crew.look()
    assert len(started) == 3


def test_a_mistake_of_the_user_is_raised_and_a_lost_worker_is_said():
    ray = Ray(a=8, b=8)
    crew, _, said = crew_of(ray)
    crew.look()
    ray.ends[0] = RayError()
    crew.wait(0)
    assert said[1:] == ["bdjax: a worker was lost: RayError"]
    ray.ends[1] = RayTaskError(UserError("no such archive"))
    with pytest.raises(UserError, match="no such archive"):
        crew.wait(0)


def test_accelerators_that_went_away_are_waited_for():
    ray = Ray(a=8)
    crew, started, said = crew_of(ray)
    ray.nodes = lambda: [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 8.0 * GIB}}]
    crew.look()
    ray.nodes = lambda: [{"NodeID": "b", "Alive": True, "Resources": {"CPU": 8.0, "memory": 8.0 * GIB}}]
    crew.look()
    assert [share.kind for share in started] == ["GPU"] and "going on when one comes" in said[-1]
