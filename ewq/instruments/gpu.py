"""GPUs: which ones a device name means, their memory and clocks as the driver sees them.

torch knows only its own allocator, llama.cpp tells nothing, and the driver's figure per process is
often missing in containers. So the whole device is read, against a baseline with a CUDA context.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.memory import SampledPeak

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


@dataclass(frozen=True)
class ClockState:
    """One reading of the clocks; of several GPUs: the slowest, the hottest, the power of all."""

    sm_clock_mhz: int
    temperature_c: int
    power_w: float
    slowdowns: tuple[str, ...]


class Gpus:
    """The GPUs that hold one model, read as one; at least one ``GPU-...`` of ``nvidia-smi -L``.

    Raises:
        BackendUnavailable: there is no NVIDIA driver.
        MeasurementError: the driver does not know a GPU; later, that it does not tell.
    """

    name = "nvml-device"

    def __init__(self, uuids: Sequence[str], nvml: Any = None) -> None:
        import pynvml

        self._nvml = nvml or pynvml
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            reason = f"no NVIDIA driver to read GPU memory from: {error}"
            raise BackendUnavailable(reason) from error
        self._uuids = ", ".join(uuids)
        self._handles = [self._find(uuid) for uuid in uuids]

    def _find(self, uuid: str) -> Any:
        """torch names a GPU and a part of one (MIG) alike, the driver does not."""
        for name in (uuid, uuid.replace("GPU-", "MIG-", 1)):
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(name)
            except self._nvml.NVMLError as error:
                reason = error
        raise MeasurementError(f"the NVIDIA driver does not know GPU {uuid}: {reason}")

    def used_bytes(self) -> int:
        """Bytes in use on all of them, whoever uses them."""
        with self._reading("memory"):
            used = (self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles)
            return sum(map(int, used))

    def watch(self) -> SampledPeak:
        """Peak of the sum by sampling: the driver keeps none."""
        return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Compute processes besides this one, whatever their ids, on the GPU with most."""
        try:
            processes = map(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handles)
            return max(0, *(len(found) - 1 for found in processes))
        except self._nvml.NVMLError:
            return 0

    def clocks(self) -> ClockState:
        """Clock, temperature, power and slowdowns now."""
        nvml, gpus = self._nvml, self._handles
        with self._reading("clocks"):
            reasons = [int(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)) for gpu in gpus]
            clocks = [int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)) for gpu in gpus]
            heat = [nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU) for gpu in gpus]
            power_w = [nvml.nvmlDeviceGetPowerUsage(gpu) / 1000 for gpu in gpus]
        slowdowns = (name for bit, name in SLOWDOWNS.items() if any(of & bit for of in reasons))
        return ClockState(min(clocks), int(max(heat)), sum(power_w), tuple(slowdowns))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._nvml.NVMLError as error:
            message = f"cannot read the {what} of GPU {self._uuids}: {error}"
            raise MeasurementError(message) from error


def gpus_of(device: str) -> list[str]:
    """torch's names of the GPUs that a device name means; none for a CPU."""
    if device != ALL:
        return [device] if device.startswith("cuda") else []
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def free_memory(device: str) -> tuple[int, int]:
    """Free and all bytes of the GPUs that a device name means, or of RAM for a CPU."""
    if gpus := gpus_of(device):
        import torch

        torch.cuda.empty_cache()
        free, total = map(sum, zip(*map(torch.cuda.mem_get_info, gpus), strict=True))
        return free, total
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def check_device(name: str) -> None:
    """Raise a BackendUnavailable of a device that torch cannot compute on.

    Afterwards a GPU's context and cuBLAS, hundreds of megabytes, exist.
    """
    import torch

    try:
        square = torch.zeros(64, 64, dtype=torch.float16, device=name)
        (square @ square).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = f"cannot compute on {name!r} ({str(error).splitlines()[0]})"
        raise BackendUnavailable(f"{reason}; choose another device, such as cpu") from error


def open_gpus(device: str) -> Gpus | None:
    """The GPUs that a device name means, CUDA contexts created; ``None`` for a CPU."""
    import torch

    gpus = gpus_of(device)
    for gpu in gpus:
        check_device(gpu)
    known = map(torch.cuda.get_device_properties, gpus)
    return Gpus([uuid_of(each) for each in known]) if gpus else None


def read_clocks(device: str) -> ClockState | None:
    """The clock state of a device; ``None`` for a CPU, which reports none."""
    gpus = open_gpus(device)
    return gpus.clocks() if gpus else None


def uuid_of(properties: Any) -> str:
    """The driver's name of a GPU, from torch's properties of it."""
    uuid = str(properties.uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
