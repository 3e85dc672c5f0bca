"""What ``pynvml`` looks like to the instruments."""

from dataclasses import dataclass, field
from types import SimpleNamespace

UUID, OTHER = "GPU-12345678", "GPU-87654321"


@dataclass
class FakeNvml:
    """Two GPUs whose readings are given by turns; the last one of ``used`` repeats."""

    used: list = field(default_factory=lambda: [0])
    processes: int = 1
    reasons: int = 0
    broken: tuple = ()

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def _answer(self, name, value):
        if name in self.broken:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):  # noqa: N802 (the library's name)
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid not in (UUID, OTHER):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return self._answer("memory", SimpleNamespace(used=used))

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return self._answer("processes", [object()] * self.processes)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self._answer("reasons", self.reasons)

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return 1980

    def nvmlDeviceGetTemperature(self, handle, kind):  # noqa: N802
        return 71

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 350_500
