"""The only place that knows members are many: strategies, chunks, devices.

A function of one member is handed to :func:`run` with a stack of members. How it is executed - the *strategy* (batched, in
chunks, unrolled, one by one), the *lowering* of convolutions and the *loop* of steps - is an :class:`Execution`, chosen per
platform by measurement and invisible to attacks and defenses.
"""

from bdjax.population.autotune.cache import Tuned
from bdjax.population.autotune.candidates import named
from bdjax.population.autotune.tune import cached, forms, tune
from bdjax.population.execute import at_once, local_devices, run
from bdjax.population.execution import (
    LOOPS,
    STRATEGIES,
    Execution,
    adapt,
    check,
    default_execution,
    recorded_execution,
    resolve,
)
from bdjax.population.memory import Footprint, activation_bytes, device_memory, fit, footprint
from bdjax.population.preparation import prepare
from bdjax.population.stacks import concatenate, members, size, stack, take, unstack

__all__ = [
    "LOOPS",
    "STRATEGIES",
    "Execution",
    "Footprint",
    "Tuned",
    "activation_bytes",
    "adapt",
    "at_once",
    "cached",
    "check",
    "concatenate",
    "default_execution",
    "device_memory",
    "fit",
    "footprint",
    "forms",
    "local_devices",
    "members",
    "named",
    "prepare",
    "recorded_execution",
    "resolve",
    "run",
    "size",
    "stack",
    "take",
    "tune",
    "unstack",
]
