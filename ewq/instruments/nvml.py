"""A GPU's memory as the driver sees it: the one reading that is right for every engine.

torch knows only what its own allocator holds, llama.cpp tells nothing, and the
driver's figure per process is often missing in containers. So the whole
device is read, against a baseline taken after the CUDA context exists; that is
the engine's memory exactly when nothing else uses the GPU.
"""

from __future__ import annotations

from typing import Any

from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.peak import PeakWatch, SampledPeak


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

    def __init__(self, uuid: str, nvml: Any = None) -> None:  # noqa: ANN401 (untyped module)
        self.nvml = _pynvml() if nvml is None else nvml
        self.uuid = uuid
        try:
            self.nvml.nvmlInit()
        except self.nvml.NVMLError as error:
            raise BackendUnavailable(
                f"no NVIDIA driver to read GPU memory from: {error}"
            ) from error
        try:
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self.nvml.NVMLError as error:
            raise MeasurementError(
                f"the NVIDIA driver does not know GPU {uuid}: {error}"
            ) from error

    def used_bytes(self) -> int:
        """Bytes in use on the whole device."""
        try:
            return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)
        except self.nvml.NVMLError as error:
            raise MeasurementError(f"cannot read the memory of GPU {self.uuid}: {error}") from error

    def watch(self) -> PeakWatch:
        """Peak by sampling: the driver keeps none."""
        return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Compute processes on the GPU besides this one.

        Process ids are the host's, which differ from a container's, so they are
        counted, not compared.
        """
        try:
            processes = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except self.nvml.NVMLError:
            return 0
        return max(0, len(processes) - 1)


def open_gpu(device: str) -> NvmlDevice:
    """The GPU behind a torch device name, its CUDA context and cuBLAS created first.

    They cost hundreds of megabytes; without this, whichever variant starts
    first would be charged for them.

    Raises:
        BackendUnavailable: torch sees no such device, or there is no driver.
    """
    import torch

    try:
        square = torch.zeros(64, 64, dtype=torch.float16, device=device)
        square @ square
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError) as error:
        raise BackendUnavailable(f"device {device} cannot be used: {error}") from error
    return NvmlDevice(uuid_of(torch.cuda.get_device_properties(device)))


def uuid_of(properties: Any) -> str:  # noqa: ANN401 (torch's device properties)
    """The driver's name of a GPU, from torch's properties of it."""
    uuid = str(properties.uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _pynvml() -> Any:  # noqa: ANN401 (untyped module)
    try:
        import pynvml
    except ImportError as error:
        raise BackendUnavailable(
            "GPU memory needs nvidia-ml-py: pip install nvidia-ml-py"
        ) from error
    return pynvml
