"""What tests ask of a compiled or exported program."""

import re

import jax

PLATFORMS = ("cpu", "cuda", "tpu")
# Custom calls that mean the same everywhere: annotations for the partitioner, which compile to nothing.
NEUTRAL = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement"}


def abstract(tree):
    """A pytree of arrays without their numbers."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def exported(function, *arguments):
    """``function`` as one module for all platforms; the arguments may be abstract.

    A jitted function that was traced or called with such arguments before is not traced again.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    return jax.export.export(jitted, platforms=PLATFORMS)(*abstract(arguments))


def custom_calls(program):
    """Names of the custom calls in an exported program."""
    text = program.mlir_module()
    found = re.findall(r"stablehlo\.custom_call @([\w.$]+)", text)
    assert len(found) == text.count("custom_call")  # none is written in a way this does not read
    return set(found)


def check_export(program):
    """It runs on every platform: there is no kernel of one of them in it."""
    assert program.platforms == PLATFORMS
    assert custom_calls(program) <= NEUTRAL


def equations(jaxpr):
    """All equations of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def dtypes_inside(jaxpr):
    """The dtypes of everything that a program computes."""
    return {v.aval.dtype for e in equations(jaxpr) for v in e.outvars if hasattr(v.aval, "dtype")}
