"""Where and how a record was made: versions, commit, device, compile time."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bdjax.population.autotune.cache import processor
from bdjax.population.stopwatch import Stopwatch

PACKAGES = ("bdjax", "jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers; "source" for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"
    return found


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the source tree this package is imported from, with "+changes" if it was edited; None outside one."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        # Without optional locks: `git status` would rewrite the index, and leave its lock behind where it may not.
        command = ["git", "--no-optional-locks", "-C", str(package.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "bdjax/__init__.py"):  # the package lies in somebody else's repository, or in none
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "bdjax") else "")


@functools.cache
def device() -> str:
    """Return the names of the devices in use."""
    devices = jax.local_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"CPU {processor()} ({os.cpu_count()} cores)"
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


class Timed(NamedTuple):
    """A result, its wall time without compilation, and the time of tracing and compiling, in seconds."""

    result: Any
    seconds: float
    compile_seconds: float


def timed(function: Callable[[], Any]) -> Timed:
    """Call a function; measure its wall time apart from the time of tracing and compiling."""
    with Stopwatch() as watch:
        result = jax.block_until_ready(function())
    return Timed(result, watch.seconds, watch.compile_seconds)
