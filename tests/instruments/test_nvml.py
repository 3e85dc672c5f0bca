from types import SimpleNamespace

import pytest

from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments import nvml
from ewq.instruments.nvml import NvmlDevice
from tests.instruments.fake_nvml import UUID, FakeNvml


def test_memory_is_the_whole_devices():
    assert NvmlDevice(UUID, FakeNvml(used=[7_000_000])).used_bytes() == 7_000_000


def test_the_peak_is_the_largest_reading():
    gpu = NvmlDevice(UUID, FakeNvml(used=[10, 90, 40]))
    with gpu.watch() as watch:
        while len(gpu.nvml.used) > 1:
            gpu.used_bytes()
    assert 40 <= watch.peak_bytes <= 90


@pytest.mark.parametrize(("processes", "others"), [(0, 0), (1, 0), (3, 2)])
def test_other_processes_are_counted(processes, others):
    assert NvmlDevice(UUID, FakeNvml(processes=processes)).shared_with() == others


def test_a_driver_that_hides_processes_is_no_reason_to_fail():
    assert NvmlDevice(UUID, FakeNvml(broken=("processes",))).shared_with() == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: NvmlDevice(UUID, FakeNvml(broken=("init",))),
            BackendUnavailable,
            "no NVIDIA driver",
            id="no driver",
        ),
        pytest.param(
            lambda: NvmlDevice("GPU-0", FakeNvml()),
            MeasurementError,
            "does not know GPU GPU-0",
            id="unknown GPU",
        ),
        pytest.param(
            lambda: NvmlDevice(UUID, FakeNvml(broken=("memory",))).used_bytes(),
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
    assert nvml.uuid_of(SimpleNamespace(uuid=uuid)) == expected


def test_a_device_torch_cannot_use_is_an_error():
    with pytest.raises(BackendUnavailable, match="device cuda:99 cannot be used"):
        nvml.open_gpu("cuda:99")
