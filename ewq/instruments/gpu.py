"""GPUs: which ones a device name means, their memory and clocks as the driver sees them.

The driver's reading is the one that is right for every engine: torch knows only what its own
allocator holds, llama.cpp tells nothing, and the driver's figure per process is often missing in
containers. So the whole device is read, against a baseline taken after the CUDA context exists;
that is the engine's memory exactly when nothing else uses the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.memory import MemoryInstrument, PeakWatch, SampledPeak

if TYPE_CHECKING:
    from ewq.measurement import Json

ALL = "cuda:all"
"""A model spread over every GPU of the machine, block by block."""
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake slowdown",
}
"""NVML's clock event reasons that say the card is slower than it should be. The power cap (0x4)
is the normal state of a card under load and not among them."""
MILLIWATTS = 1000


@dataclass(frozen=True)
class ClockState:
    """One reading of the clocks: whether a measured speed is the card's or the heat's."""

    sm_clock_mhz: int
    temperature_c: int
    power_w: float
    slowdowns: tuple[str, ...]
    """Reasons for which the card is slowed down now; empty in good order."""

    def to_json(self) -> dict[str, Json]:
        """The state as stored beside a result."""
        return {**asdict(self), "slowdowns": list(self.slowdowns)}


class NvmlDevice:
    """One GPU by its UUID.

    Args:
        uuid: ``GPU-...`` as ``nvidia-smi -L`` prints it.
        nvml: the ``pynvml`` module, or what stands in for it.

    Raises:
        BackendUnavailable: there is no NVIDIA driver.
        MeasurementError: the driver does not know the device.
    """

    name = "nvml-device"

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._nvml = _pynvml() if nvml is None else nvml
        self._uuid = uuid
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise BackendUnavailable(
                f"no NVIDIA driver to read GPU memory from: {error}"
            ) from error
        self._handle = self._find(uuid)

    def _find(self, uuid: str) -> Any:
        """The device; torch names a GPU and a part of one (MIG) alike, the driver does not."""
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            if uuid.startswith("GPU-"):
                return self._find(uuid.replace("GPU-", "MIG-", 1))
            raise MeasurementError(
                f"the NVIDIA driver does not know GPU {self._uuid}: {error}"
            ) from error

    def used_bytes(self) -> int:
        """Bytes in use on the whole device."""
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except self._nvml.NVMLError as error:
            raise self._unreadable("memory", error) from error

    def watch(self) -> PeakWatch:
        """Peak by sampling: the driver keeps none."""
        return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Compute processes on the GPU besides this one.

        Process ids are the host's, which differ from a container's, so they are
        counted, not compared.
        """
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return 0
        return max(0, len(processes) - 1)

    def clocks(self) -> ClockState:
        """Clock, temperature, power and slowdowns now.

        Raises:
            MeasurementError: the driver does not tell.
        """
        nvml, handle = self._nvml, self._handle
        try:
            reasons = int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
            return ClockState(
                sm_clock_mhz=int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                temperature_c=int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                power_w=nvml.nvmlDeviceGetPowerUsage(handle) / MILLIWATTS,
                slowdowns=tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit),
            )
        except nvml.NVMLError as error:
            raise self._unreadable("clocks", error) from error

    def _unreadable(self, what: str, error: Exception) -> MeasurementError:
        return MeasurementError(f"cannot read the {what} of GPU {self._uuid}: {error}")


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


def gpus_of(device: str) -> list[str]:
    """torch's names of the GPUs that a device name means; none for a CPU."""
    if device != ALL:
        return [device] if device.startswith("cuda") else []
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def open_gpus(device: str) -> list[NvmlDevice]:
    """Every GPU that a device name means, its CUDA context created.

    Raises:
        BackendUnavailable: torch sees no such device, or there is no driver.
    """
    return [_open_gpu(name) for name in gpus_of(device)]


def read_clocks(device: str) -> ClockState | None:
    """The clock state of a device; ``None`` for a CPU, which reports none."""
    states = [gpu.clocks() for gpu in open_gpus(device)]
    return slowest(states) if states else None


def slowest(states: Sequence[ClockState]) -> ClockState:
    """The state of GPUs that work on one model and so wait for one another.

    The slowest clock, the highest temperature, the power of all, and every slowdown.
    """
    slowdowns = (reason for state in states for reason in state.slowdowns)
    return ClockState(
        sm_clock_mhz=min(state.sm_clock_mhz for state in states),
        temperature_c=max(state.temperature_c for state in states),
        power_w=sum(state.power_w for state in states),
        slowdowns=tuple(dict.fromkeys(slowdowns)),
    )


def uuid_of(properties: Any) -> str:
    """The driver's name of a GPU, from torch's properties of it."""
    uuid = str(properties.uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _open_gpu(device: str) -> NvmlDevice:
    """The GPU behind a torch device name, its CUDA context and cuBLAS created first.

    They cost hundreds of megabytes; without this, whichever variant starts first would be
    charged for them.
    """
    import torch

    try:
        square = torch.zeros(64, 64, dtype=torch.float16, device=device)
        square @ square
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError) as error:
        raise BackendUnavailable(f"device {device} cannot be used: {error}") from error
    return NvmlDevice(uuid_of(torch.cuda.get_device_properties(device)))


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise BackendUnavailable(
            "GPU memory needs nvidia-ml-py: pip install nvidia-ml-py"
        ) from error
    return pynvml
