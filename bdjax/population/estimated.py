"""What a TPU's compiler expects a program to cost: its estimate of cycles, read from the program that it has compiled.

The figures are the ones that the compiler schedules by. They compare forms of the same work on one kind of device; they are no
measured times, and are called estimates wherever they are shown.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
SOURCE = re.compile(r'op_name="([^"]*)"')
LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
CALL = re.compile(
    r" (?:call|conditional)\(.*(?:to_apply=|branch_computations=\{|true_computation=)(.*?)(?:\}|, metadata|, backend|$)"
)
CONSTANT = re.compile(r"%([\w.\-]+) = s32\[\][^ ]* constant\((\d+)\)")
# By what an instruction does: its name may be that of JAX's function, as in "%psum.3 = f32[8] all-reduce(…)".
COLLECTIVE = re.compile(
    r"^ +(?:ROOT )?%?([\w.\-]+) = .*? "
    r"(?:all-reduce|all-gather|(?:ragged-)?all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\(",
    re.MULTILINE,
)


class Instruction(NamedTuple):
    """One instruction outside of fusions that costs something."""

    name: str
    cycles: int
    source: str  # what it was written as, by JAX's names


class Loop(NamedTuple):
    """A loop of a program, without the loops in it."""

    trips: int | None  # None: not written in the program
    instructions: tuple[Instruction, ...]  # of one trip

    @property
    def cycles(self) -> int:
        """Of one trip."""
        return sum(one.cycles for one in self.instructions)


class Cost(NamedTuple):
    """What a program costs."""

    once: int  # cycles outside of loops
    loops: tuple[Loop, ...]  # with how often each runs in all, the costliest first
    total: int  # cycles in all; a loop whose end is not written in the program counts once
    collectives: tuple[str, ...]  # instructions in which devices wait for each other

    @property
    def step(self) -> Loop:
        """The costliest loop: a training's or a defense's step.

        Raises:
          ValueError: there is no loop.
        """
        if not self.loops:
            raise ValueError("the program has no loop")
        return self.loops[0]


def cost(text: str) -> Cost:
    """Read the cost of a program.

    Args:
      text: of the optimised program, as ``compiled.as_text()`` gives it.
    """
    lines, entry = _computations(text)
    once, loops = 0, []
    for name, times, looped in _runs(lines, entry):
        instructions = tuple(_costly(lines[name]))
        if looped:
            loops.append(Loop(times, instructions))
        else:
            once += sum(one.cycles for one in instructions)
    loops.sort(key=lambda loop: -loop.cycles * (loop.trips or 1))
    total = once + sum(loop.cycles * (loop.trips or 1) for loop in loops)
    return Cost(once, tuple(loops), total, tuple(COLLECTIVE.findall(text)))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the one that the program begins with."""
    found: dict[str, list[str]] = {}
    mine: list[str] = []
    entry = ""
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            mine = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("  "):
            mine.append(line)
    return found, entry


Runs = Iterator[tuple[str, int | None, bool]]  # (computation, how often it runs, whether it is in a loop)


def _runs(lines: dict[str, list[str]], name: str, times: int | None = 1, looped: bool = False) -> Runs:
    """The computations that run on their own, not inside of a fusion."""
    yield name, times, looped
    for line in lines[name]:
        loop = LOOP.search(line)
        if loop:
            trips = _trips(lines[loop[1]])
            inner = None if times is None or trips is None else times * trips
            yield from _runs(lines, loop[2], inner, True)
        elif (call := CALL.search(line)) is not None:
            for called in re.findall(r"%([\w.\-]+)", call[1]):
                yield from _runs(lines, called, times, looped)


def _trips(condition: list[str]) -> int | None:
    """How often a loop runs that counts from 0 to a number in its condition; None for another."""
    root = next(line for line in condition if "ROOT" in line)
    numbers = {name: int(value) for line in condition for name, value in CONSTANT.findall(line)}
    compared = re.search(r"compare\(([^)]*)\), direction=LT", root) or re.search(r"fusion\(([^)]*)\)", root)
    bounds = [numbers[name] for name in re.findall(r"%([\w.\-]+)", compared[1]) if name in numbers] if compared else []
    return bounds[0] if len(bounds) == 1 else None


def _costly(lines: list[str]) -> Iterator[Instruction]:
    for line in lines:
        cycles = CYCLES.search(line)
        if cycles and int(cycles[1]):
            name, source = re.match(r"\s*(?:ROOT )?%?([\w.\-]+)", line), SOURCE.search(line)
            yield Instruction(name[1] if name else "", int(cycles[1]), source[1] if source else "")
