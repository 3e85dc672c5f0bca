from dataclasses import replace

import numpy as np
import pytest

from ewq.errors import MeasurementError
from ewq.instruments.gpu import Gpus
from ewq.instruments.load_watch import LoadReading, watch_loading
from ewq.tasks import memory
from tests.instruments.fake_nvml import UUID, FakeNvml
from tests.tasks.numpy_model import NumpyModel

LOAD = LoadReading(1.5, 3_000, 500)
SIZE = 80_000_000


def on_gpu(engine="llama.cpp"):
    model = NumpyModel()
    model.info = replace(model.info, device="cuda:0", engine=engine)
    return model


def test_a_gpus_peak_is_the_devices_above_the_baseline():
    gpu = Gpus([UUID], FakeNvml(used=[700, 900, 800]))
    result = memory.run(on_gpu(), LOAD, 8, 4, gpu)
    assert set(result.metrics) == {
        "weights_bytes",
        "bits_per_weight",
        "vram_peak_bytes",
        "load_peak_ram_bytes",
        "load_s",
    }
    assert 700 - 500 <= result.metrics["vram_peak_bytes"].value <= 900 - 500
    assert result.settings["instrument"] == "nvml-device"
    assert result.metrics["weights_bytes"].value == 1000
    assert result.metrics["bits_per_weight"].value == 16.0
    assert (result.metrics["load_s"].value, result.metrics["load_s"].unit) == (1.5, "s")
    assert result.notes == ()


def test_a_shared_gpu_is_noted():
    gpu = Gpus([UUID], FakeNvml(used=[900], processes=2))
    (note,) = memory.run(on_gpu(), LOAD, 8, 4, gpu).notes
    assert "1 other processes use the GPU" in note


def test_a_cpus_peak_covers_weights_and_work():
    class Hungry(NumpyModel):
        def generate(self, prompts, new_tokens):
            cache = np.ones(SIZE // 8)
            assert cache[-1] == 1
            return super().generate(prompts, new_tokens)

    def load():
        model = Hungry()
        model.weights = np.ones(SIZE // 8)
        return model

    model, reading = watch_loading("cpu", load)
    result = memory.run(model, reading, 8, 4)
    assert 1.8 * SIZE < result.metrics["ram_peak_bytes"].value < 3 * SIZE
    assert 0.9 * SIZE < result.metrics["load_peak_ram_bytes"].value < 2 * SIZE
    assert result.settings["instrument"] == "process-rss"


def test_the_peak_is_read_over_prefill_and_decode():
    model = on_gpu()
    seen = []
    model.generate = lambda prompts, new: seen.append((len(prompts), len(prompts[0]), new))
    memory.run(model, LOAD, 8, 4, Gpus([UUID], FakeNvml(used=[900])))
    assert seen == [(1, 8, 4)]


@pytest.mark.parametrize(
    ("prompt", "used", "message"),
    [
        pytest.param(600, 900, "600 prompt and 4 new tokens: 604 tokens exceed", id="context"),
        pytest.param(8, 400, "reads 400 bytes at the peak and 500", id="below baseline"),
    ],
)
def test_an_impossible_reading_is_an_error(prompt, used, message):
    with pytest.raises(MeasurementError, match=message):
        memory.run(on_gpu(), LOAD, prompt, 4, Gpus([UUID], FakeNvml(used=[used])))
