import pytest

from ewq.errors import MeasurementError
from ewq.instruments.gpu_clocks import clock_state, read_clocks
from ewq.instruments.nvml import NvmlDevice
from tests.instruments.fake_nvml import UUID, FakeNvml


@pytest.mark.parametrize(
    ("reasons", "slowdowns"),
    [
        pytest.param(0x0, (), id="none"),
        pytest.param(0x1, (), id="idle"),
        pytest.param(0x4, (), id="power cap is normal"),
        pytest.param(0x20, ("software thermal slowdown",), id="thermal"),
        pytest.param(
            0x4 | 0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown"), id="hardware"
        ),
    ],
)
def test_only_heat_and_power_faults_count_as_slowdowns(reasons, slowdowns):
    state = clock_state(NvmlDevice(UUID, FakeNvml(reasons=reasons)))
    assert state.slowdowns == slowdowns
    assert (state.sm_clock_mhz, state.temperature_c, state.power_w) == (1980, 71, 350.5)
    assert state.to_json()["slowdowns"] == list(slowdowns)


def test_a_cpu_has_no_clock_state():
    assert read_clocks("cpu") is None


def test_clocks_that_cannot_be_read_are_an_error():
    with pytest.raises(MeasurementError, match="cannot read the clocks"):
        clock_state(NvmlDevice(UUID, FakeNvml(broken=("reasons",))))
