"""Clock and throttle state of a GPU: whether a measured speed is the card's or the heat's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ewq.errors import MeasurementError
from ewq.instruments.gpus import open_gpus
from ewq.instruments.nvml import NvmlDevice

if TYPE_CHECKING:
    from ewq.measurement import Json

# NVML's clocks event reasons that say the card is slower than it should be.
# The power cap (0x4) is the normal state of a card under load and not among them.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake slowdown",
}
_MILLIWATTS = 1000


@dataclass(frozen=True)
class ClockState:
    """One reading."""

    sm_clock_mhz: int
    temperature_c: int
    power_w: float
    slowdowns: tuple[str, ...]
    """Reasons for which the card is slowed down now; empty in good order."""

    def to_json(self) -> dict[str, Json]:
        """The state as stored beside a result."""
        return {**asdict(self), "slowdowns": list(self.slowdowns)}


def read_clocks(device: str) -> ClockState | None:
    """The clock state of a device; ``None`` for a CPU, which reports none.

    Several GPUs wait for one another: the slowest clock, the highest temperature, the power of
    all, and every slowdown that any of them has.
    """
    states = [clock_state(gpu) for gpu in open_gpus(device)]
    return together(states) if states else None


def together(states: Sequence[ClockState]) -> ClockState:
    """The state of GPUs that work on one model."""
    slowdowns = (reason for state in states for reason in state.slowdowns)
    return ClockState(
        sm_clock_mhz=min(state.sm_clock_mhz for state in states),
        temperature_c=max(state.temperature_c for state in states),
        power_w=sum(state.power_w for state in states),
        slowdowns=tuple(dict.fromkeys(slowdowns)),
    )


def clock_state(gpu: NvmlDevice) -> ClockState:
    """The clock state of an opened GPU.

    Raises:
        MeasurementError: the driver does not tell.
    """
    nvml, handle = gpu.nvml, gpu.handle
    try:
        reasons = int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        return ClockState(
            sm_clock_mhz=int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            temperature_c=int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / _MILLIWATTS,
            slowdowns=_named(reasons, _SLOWDOWNS),
        )
    except nvml.NVMLError as error:
        raise MeasurementError(f"cannot read the clocks of GPU {gpu.uuid}: {error}") from error


def _named(bits: int, names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(name for bit, name in names.items() if bits & bit)
