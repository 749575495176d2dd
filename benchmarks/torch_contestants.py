"""PyTorch's ways to do a job for many models: eager or compiled, in one process or dealt out to one per core. Needs torch."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.torch_reference import NETWORKS, Rows, Sgd, evaluate, forward_of, rows_of, train, tune


class Job(NamedTuple):
    """What to do for every model, in plain values: it travels to other processes."""

    work: str  # "train" | "tune" | "tune, evaluated"
    network: str
    width: int
    size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int  # rows per step
    rows: int  # training rows of "train"; rows per class of the others
    epochs: int
    eval_images: int
    dtype: str  # "float32" | "bfloat16": autocast
    device: str  # "cpu" | "cuda"
    sgd: Sgd


class Runner:
    """One process's share of a job. Every model starts from weights of its own; the network's memory is used again."""

    def __init__(self, job: Job, compiled: bool = False, mode: str = "default") -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.job = job
        self.net = NETWORKS[job.network](job.classes, job.width).to(job.device, memory_format=torch.channels_last)
        self.forward = forward_of(self.net, job.mean, job.std, getattr(torch, job.dtype))
        if compiled:
            torch.compiler.reset()  # past a number of recompilations the compiler would silently give up, so jobs share none
            self.forward = torch.compile(self.forward, mode=mode, dynamic=False)
        total = job.rows if job.work == "train" else 4 * job.rows * job.classes
        self.rows = self._rows(total, 0.1 if job.work == "train" else 0.0)
        self.test = self._rows(job.eval_images, 0.0)

    def _rows(self, n: int, ratio: float) -> Rows:
        images = torch.randint(0, 256, (n, self.job.size, self.job.size, 3), dtype=torch.uint8, device=self.job.device)
        return rows_of(images, torch.arange(n, device=self.job.device) % self.job.classes, ratio)

    def run(self, models: Sequence[int]) -> int:
        """Do the job for every seed of ``models``, wait for it, and count the images that went through a network."""
        done = sum(self._one(seed) for seed in models)
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        return done

    def _one(self, seed: int) -> int:
        torch.manual_seed(seed)
        for module in self.net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        job = self.job
        if job.work == "train":
            return train(self.net, self.forward, self.rows, job.batch, job.epochs, job.sgd)
        labels = self.rows.labels
        chosen = []
        for label in range(job.classes):
            of_class = (labels == label).nonzero()[:, 0]
            chosen.append(of_class[torch.randperm(len(of_class), device=labels.device)[: job.rows]])
        index = torch.cat(chosen)
        done = tune(self.net, self.forward, self.rows.images[index], labels[index], job.batch, job.epochs, job.sgd)
        return done + (evaluate(self.net, self.forward, self.test)[1] if job.work == "tune, evaluated" else 0)


class Processes:
    """One single-threaded process per core, each with its share of the models; started once, before anything is timed."""

    def __init__(self, job: Job, count: int, compiled: bool = False, mode: str = "default") -> None:
        context = multiprocessing.get_context("spawn")
        self.workers = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job, compiled, mode), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def run(self, models: Sequence[int]) -> int:
        """As :meth:`Runner.run`, the models dealt out to the processes.

        Raises:
          RuntimeError: one of them failed.
        """
        pipes = [pipe for _, pipe in self.workers]
        try:
            for i, pipe in enumerate(pipes):
                pipe.send(list(models)[i :: len(pipes)])
            answers: list[Any] = [pipe.recv() for pipe in pipes]
        except (EOFError, OSError) as error:
            raise RuntimeError("a PyTorch process ended before its work was done") from error
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return sum(answers)

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self.workers:
            pipe.close()
            process.join(10)
            if process.is_alive():
                process.terminate()


def _serve(pipe: Connection, job: Job, compiled: bool, mode: str) -> None:
    torch.set_num_threads(1)
    runner = None
    while True:
        try:
            models = pipe.recv()
        except EOFError:  # the parent is done
            return
        try:
            runner = runner or Runner(job, compiled, mode)
            answer: Any = runner.run(models)
        except Exception as error:  # whatever it is, the parent reports it as a row
            answer = f"{type(error).__name__}: {error}"
        pipe.send(answer)


def forward_macs(job: Job) -> int:
    """Multiply-accumulates of one image's forward pass, by PyTorch's own count of convolutions and matrix products."""
    net = NETWORKS[job.network](job.classes, job.width).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, job.size, job.size))
    return counter.get_total_flops() // 2
