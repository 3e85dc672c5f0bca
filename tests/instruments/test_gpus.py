"""Several GPUs that hold one model are read as one."""

import pytest
import torch

from ewq.instruments import gpus
from ewq.instruments.gpu_clocks import ClockState, together
from ewq.instruments.nvml import NvmlDevice
from tests.instruments.fake_nvml import UUID, FakeNvml


@pytest.mark.parametrize(
    ("device", "names"),
    [("cpu", []), ("cuda:1", ["cuda:1"]), (gpus.ALL, ["cuda:0", "cuda:1", "cuda:2"])],
)
def test_a_device_name_means_these_gpus(monkeypatch, device, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpus.gpus_of(device) == names


def test_their_memory_is_added_up():
    first = NvmlDevice(UUID, FakeNvml(used=[10, 90, 40], processes=1))
    second = NvmlDevice(UUID, FakeNvml(used=[5, 5, 80], processes=3))
    both = gpus.SeveralGpus([first, second])
    assert both.used_bytes() == 15
    assert (both.name, both.shared_with()) == ("nvml-device", 2)
    with both.watch() as watch:
        pass
    assert watch.peak_bytes == 120


def test_the_slowest_of_them_sets_the_clocks():
    cool = ClockState(1980, 60, 300.0, ())
    hot = ClockState(1400, 92, 350.0, ("hardware slowdown",))
    assert together([cool, hot, hot]) == ClockState(1400, 92, 1000.0, ("hardware slowdown",))
