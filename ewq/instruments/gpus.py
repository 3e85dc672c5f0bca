"""Which GPUs a device name means, and their memory read as one."""

from __future__ import annotations

from collections.abc import Sequence

from ewq.instruments.nvml import NvmlDevice, open_gpu
from ewq.instruments.peak import MemoryInstrument, PeakWatch, SampledPeak

ALL = "cuda:all"
"""A model spread over every GPU of the machine, block by block."""


def gpus_of(device: str) -> list[str]:
    """torch's names of the GPUs that a device name means; none for a CPU."""
    if device != ALL:
        return [device] if device.startswith("cuda") else []
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


class SeveralGpus:
    """The memory of several GPUs, added up; each has a CUDA context of its own."""

    def __init__(self, gpus: Sequence[MemoryInstrument]) -> None:
        self.name = gpus[0].name
        self._gpus = gpus

    def used_bytes(self) -> int:
        """Bytes in use on all of them."""
        return sum(gpu.used_bytes() for gpu in self._gpus)

    def watch(self) -> PeakWatch:
        """Peak of the sum, by sampling."""
        return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Processes besides this one on the GPU that has most of them."""
        return max(gpu.shared_with() for gpu in self._gpus)


def open_gpus(device: str) -> list[NvmlDevice]:
    """Every GPU that a device name means, its CUDA context created.

    Raises:
        BackendUnavailable: torch sees no such device, or there is no driver.
    """
    return [open_gpu(name) for name in gpus_of(device)]
