"""What a TPU's compiler expects a program to cost, read from a short program written by hand in its notation."""

import pytest

from bdjax.population import estimated

# A loop of 7 trips with one of 3 in it, a function that is called, a fusion whose inside counts as a whole.
PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%param_0, %param_0), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%inner (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %dot.1 = f32[8]{0} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/while/body/dot_general" \
stack_frame_id=9}, backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%i, %dot.1)
}

%inner_end (arg: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt.0 = pred[] compare(%i, %constant.1), direction=LT
}

%called (arg: f32[8]) -> f32[8] {
  ROOT %copy.1 = f32[8]{0} copy(%arg), backend_config={"window_config":{"estimated_cycles":"4"}}
}

%outer (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %while.1 = (s32[], f32[8]{0}) while(%arg), condition=%inner_end, body=%inner
  %call.1 = f32[8]{0} call(%y), to_apply=%called
  ROOT %sin.1 = f32[8]{0} fusion(%y), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"20"}}
}

%outer_end (arg: (s32[], f32[8])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(7)
  ROOT %lt.1 = pred[] compare(%i, %constant.2), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.2 = (s32[], f32[8]{0}) while(%start), condition=%outer_end, body=%outer, metadata={op_name="jit(f)/while"}
  %free.1 = f32[8]{0} bitcast(%z), backend_config={"window_config":{"estimated_cycles":"0"}}
  ROOT %copy.2 = f32[8]{0} copy(%z), backend_config={"window_config":{"estimated_cycles":"6"}}
}
"""


def test_loops_count_as_often_as_they_run_and_fusions_as_a_whole():
    cost = estimated.cost(PROGRAM)
    assert cost.once == 6 and cost.total == 6 + 7 * (20 + 4) + 7 * 3 * 50
    assert sorted(loop.trips for loop in cost.loops) == [7, 7, 21] and cost.collectives == ()


def test_the_step_is_the_costliest_loop():
    step = estimated.cost(PROGRAM).step
    assert (step.trips, step.cycles) == (21, 50)
    assert step.instructions == (estimated.Instruction("dot.1", 50, "jit(f)/while/body/dot_general"),)


def test_a_loop_whose_end_is_not_written_counts_once():
    unknown = PROGRAM.replace("constant(3)", "parameter(0)")
    cost = estimated.cost(unknown)
    assert cost.total == 6 + 7 * (20 + 4) + 50 and None in [loop.trips for loop in cost.loops]


def test_a_program_without_a_loop_has_no_step():
    entry = PROGRAM[PROGRAM.index("ENTRY") :].replace("while(%start), condition=%outer_end, body=%outer", "tuple(%start)")
    cost = estimated.cost(entry)
    assert cost.total == 6
    with pytest.raises(ValueError, match="no loop"):
        _ = cost.step


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("%all-reduce.1 = f32[8]{0} all-reduce(%z), replica_groups={{0,1}}, to_apply=%sum", "all-reduce.1"),
        ("%psum.3 = f32[8]{0:T(128)S(1)} all-reduce(%z), to_apply=%sum", "psum.3"),  # by what it does, whatever its name
        ("%g.1 = (f32[8]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}", "g.1"),
        ("%p.2 = f32[8]{0} collective-permute(%z)", "p.2"),
    ],
)
def test_devices_that_wait_for_each_other_are_found(line, name):
    assert estimated.cost(PROGRAM.replace("  ROOT %copy.2", f"  {line}\n  ROOT %copy.2")).collectives == (name,)


def test_the_end_of_a_transfer_is_not_counted_again():
    ended = PROGRAM.replace("  ROOT %copy.2", "  %d.1 = f32[16]{0} all-gather-done(%g.1)\n  ROOT %copy.2")
    assert estimated.cost(ended).collectives == ()
