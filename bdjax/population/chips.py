"""Kinds of devices, as JAX counts devices, from the makers' data sheets."""

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of device."""

    memory: int  # bytes of a device
    peak: float  # bf16 FLOP/s of a device
    compiler: str  # what its compiler calls it: the smallest topology of a TPU, the text of a GPU's description
    machine: str = ""  # what a TPU's compiler calls a machine of that topology
    per_cycle: int = 0  # bf16 FLOP that a TPU's matrix units do in a cycle
    cores: int = 1  # that the number in the name of a slice counts, of a device
    bandwidth: float = 0.0  # bytes per second to and from a GPU's memory

    @property
    def clock(self) -> float:
        """Cycles of a second, of a TPU."""
        return self.peak / self.per_cycle


def _nvidia(
    name: str, major: int, cores: int, memory: int, peak: float, bandwidth: float, cache: int, clock: float, shared: int
) -> Chip:
    """A GPU, described in text as XLA's compiler wants it (``xla/stream_executor/device_description.proto``)."""
    text = (
        "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
        f"shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128 "
        f"block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {int(bandwidth)} "
        f"l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory} "
        f"shared_memory_per_block_optin: {shared - 1024} cuda_compute_capability {{ major: {major} }} "
        "registers_per_core_limit: 65536 registers_per_block_limit: 65536 } "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "NVIDIA {name}"'
    )
    return Chip(memory, peak, text, bandwidth=bandwidth)


# What the matrix units do in a cycle was checked with the compiler: a product of two 8192 x 8192 bf16 matrices is to reach 86 to
# 93 % of it, on v6e 70 %.
TPUS = {  # a device of v4 is one of a chip's two cores, as its compiler counts them here
    "v4": Chip(17_200_000_000, 1.375e14, "v4:2x2x1", "v4-8", 131_072),
    "v5e": Chip(17_200_000_000, 1.97e14, "v5e:2x2", "v5litepod-4", 131_072),
    "v5p": Chip(103_000_000_000, 4.59e14, "v5p:2x2x1", "v5p-8", 262_144, 2),
    "v6e": Chip(34_400_000_000, 9.2e14, "v6e:2x2", "v6e-4", 524_288),
}
GPUS = {
    "a100": _nvidia("A100", 8, 108, 85_000_000_000, 3.12e14, 2.039e12, 41_943_040, 1.41, 167_936),
    "h100": _nvidia("H100", 9, 132, 85_500_000_000, 9.89e14, 3.35e12, 52_428_800, 1.98, 233_472),
    "h200": _nvidia("H200", 9, 132, 151_397_597_184, 9.89e14, 4.8e12, 52_428_800, 1.98, 233_472),
}
CHIPS = {"tpu": TPUS, "cuda": GPUS}
