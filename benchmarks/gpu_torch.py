"""PyTorch's part of the suite for a GPU, in a process of its own: one network at a time, timed beside ours.

    echo '{"job": {...}, "compiled": true, "models": 1, "repeats": 3}' | python -m benchmarks.gpu_torch

A process of its own has its own CUDA libraries, and can be ended when its time is over. Its answer is the last line of its
output, as JSON: either what was measured, or "absent" with the reason why there is nothing to measure.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = 30.0  # seconds that PyTorch is expected to take to start and to compile, at least


def beside(job: dict[str, Any], *, compiled: bool, models: int, repeats: int, limit: float) -> dict[str, Any]:
    """Measure a job with PyTorch.

    Args:
      job: the fields of ``benchmarks.torch_contestants.Job``, with "sgd" as the list of its settings.
      compiled: by ``torch.compile``, else eagerly.
      models: networks of one timed call, one after another.
      repeats: timed calls after the first.
      limit: seconds after which the process is ended.

    Returns:
      "first" and "best", seconds of the first call and of the best later one, "images" of a call and the version "torch"; or
      "absent", the reason why there is no PyTorch to measure.

    Raises:
      RuntimeError: the process failed or did not finish in time.
    """
    asked = json.dumps({"job": job, "compiled": compiled, "models": models, "repeats": repeats})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_torch"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(asked, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"PyTorch did not finish within {limit:.0f} s") from None
    finally:  # with the processes in which its compiler works
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError((err.strip().splitlines() or [f"PyTorch's process ended with status {process.returncode}"])[-1])
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    """Do the job that comes on the standard input."""
    asked = json.load(sys.stdin)
    print(json.dumps(_measured(**asked)))


def _measured(job: dict[str, Any], compiled: bool, models: int, repeats: int) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"absent": "PyTorch is not installed here"}
    if job["device"] == "cuda" and not torch.cuda.is_available():
        return {"absent": f"PyTorch {torch.__version__} sees no CUDA device"}
    from benchmarks.torch_contestants import Job, Runner
    from benchmarks.torch_reference import NETWORKS, Sgd

    if job["network"] not in NETWORKS:
        return {"absent": f"there is no PyTorch reference of {job['network']}"}
    runner, times, images = Runner(Job(**{**job, "sgd": Sgd(*job["sgd"])}), compiled), [], 0
    for _ in range(repeats + 1):
        start = time.perf_counter()
        images = runner.run(range(models))
        times.append(time.perf_counter() - start)
    return {"first": times[0], "best": min(times[1:]), "images": images, "torch": torch.__version__}


if __name__ == "__main__":
    main()
