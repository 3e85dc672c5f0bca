"""GPUs through the driver: memory, clocks, and several that hold one model read as one."""

from types import SimpleNamespace

import pytest
import torch

from ewq.codec import encode
from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments import gpu
from ewq.instruments.gpu import ALL, ClockState, Gpus, gpus_of
from tests.instruments.fake_nvml import OTHER, UUID, FakeNvml


def test_memory_is_the_whole_devices():
    assert Gpus([UUID], FakeNvml(used=[7_000_000])).used_bytes() == 7_000_000


def test_the_peak_is_the_largest_reading():
    nvml = FakeNvml(used=[10, 90, 40])
    device = Gpus([UUID], nvml)
    with device.watch() as watch:
        while len(nvml.used) > 1:
            device.used_bytes()
    assert 40 <= watch.peak_bytes <= 90


@pytest.mark.parametrize(("processes", "others"), [(0, 0), (1, 0), (3, 2)])
def test_other_processes_are_counted(processes, others):
    assert Gpus([UUID], FakeNvml(processes=processes)).shared_with() == others


def test_a_driver_that_hides_processes_is_no_reason_to_fail():
    assert Gpus([UUID], FakeNvml(broken=("processes",))).shared_with() == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: Gpus([UUID], FakeNvml(broken=("init",))),
            BackendUnavailable,
            "no NVIDIA driver",
            id="no driver",
        ),
        pytest.param(
            lambda: Gpus(["GPU-0"], FakeNvml()),
            MeasurementError,
            "does not know GPU GPU-0",
            id="unknown GPU",
        ),
        pytest.param(
            lambda: Gpus([UUID], FakeNvml(broken=("memory",))).used_bytes(),
            MeasurementError,
            "cannot read the memory",
            id="unreadable",
        ),
    ],
)
def test_what_the_driver_cannot_tell_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("uuid", ["1234-5678", "GPU-1234-5678", "MIG-1234-5678"])
def test_torchs_uuid_becomes_the_drivers(uuid):
    expected = uuid if "-1234" in uuid else f"GPU-{uuid}"
    assert gpu.uuid_of(SimpleNamespace(uuid=uuid)) == expected


def test_a_part_of_a_gpu_has_another_prefix():
    part = FakeNvml()
    part.nvmlDeviceGetHandleByUUID = lambda uuid: part._answer(f"no {uuid}", uuid)
    part.broken = ("no GPU-1234",)
    assert gpu.Gpus(["GPU-1234"], part)._handles == ["MIG-1234"]
    part.broken = ("no GPU-1234", "no MIG-1234")
    with pytest.raises(MeasurementError, match="does not know GPU GPU-1234"):
        gpu.Gpus(["GPU-1234"], part)


def test_a_device_torch_cannot_use_is_an_error():
    with pytest.raises(BackendUnavailable, match="cannot compute on 'cuda:99'"):
        gpu.open_gpus("cuda:99")


@pytest.mark.parametrize(
    ("device", "names"),
    [("cpu", []), ("cuda:1", ["cuda:1"]), (ALL, ["cuda:0", "cuda:1", "cuda:2"])],
)
def test_a_device_name_means_these_gpus(monkeypatch, device, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpus_of(device) == names


def test_their_memory_is_added_up():
    nvml = FakeNvml(used=[10, 5, 90, 5, 40, 80])
    nvml.nvmlDeviceGetComputeRunningProcesses = {UUID: [1], OTHER: [1, 2, 3]}.get
    both = Gpus([UUID, OTHER], nvml)
    assert both.used_bytes() == 15
    assert (both.name, both.shared_with()) == ("nvml-device", 2)
    assert (both.used_bytes(), both.used_bytes()) == (95, 120)


def test_the_slowest_of_them_sets_the_clocks():
    nvml = FakeNvml()
    nvml.nvmlDeviceGetClockInfo = lambda gpu, kind: 1400 if gpu == OTHER else 1980
    nvml.nvmlDeviceGetTemperature = lambda gpu, kind: 92 if gpu == OTHER else 60
    nvml.nvmlDeviceGetCurrentClocksEventReasons = {UUID: 0x4, OTHER: 0x8}.get
    state = Gpus([UUID, OTHER], nvml).clocks()
    assert state == ClockState(1400, 92, 701.0, ("hardware slowdown",))


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
    state = Gpus([UUID], FakeNvml(reasons=reasons)).clocks()
    assert state.slowdowns == slowdowns
    assert (state.sm_clock_mhz, state.temperature_c, state.power_w) == (1980, 71, 350.5)
    assert encode(state)["slowdowns"] == list(slowdowns)


def test_a_cpu_has_no_clock_state():
    assert gpu.read_clocks("cpu") is None


def test_clocks_that_cannot_be_read_are_an_error():
    with pytest.raises(MeasurementError, match="cannot read the clocks"):
        Gpus([UUID], FakeNvml(broken=("reasons",))).clocks()
