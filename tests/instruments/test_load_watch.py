import numpy as np
import pytest

from ewq.errors import MeasurementError
from ewq.instruments.load_watch import instrument_for, watch_loading
from ewq.instruments.memory import ProcessMemory

SIZE = 80_000_000


def load():
    weights = np.ones(SIZE // 8)
    copies = weights + 1
    del copies
    return weights


def test_loading_is_read_above_the_memory_before_it():
    weights, reading = watch_loading("cpu", load)
    assert 1.8 * SIZE < reading.load_peak_ram_bytes < 3 * SIZE
    assert reading.load_s > 0
    kept = ProcessMemory().used_bytes() - SIZE
    assert reading.device_baseline_bytes == pytest.approx(kept, rel=0.05)
    assert weights[0] == 1


def test_a_device_without_an_instrument_is_an_error():
    with pytest.raises(MeasurementError, match="device 'mps'"):
        instrument_for("mps")
