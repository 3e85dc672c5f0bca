import numpy as np
import pytest

from ewq.errors import MeasurementError
from ewq.instruments.load_watch import LoadWatch, instrument_for

SIZE = 80_000_000


def test_loading_is_read_above_the_memory_before_it():
    with LoadWatch("cpu") as watch:
        weights = np.ones(SIZE // 8)
        copies = weights + 1
        del copies
    reading = watch.reading
    assert 1.8 * SIZE < reading.load_peak_ram_bytes < 3 * SIZE
    assert reading.load_s > 0
    assert reading.device_baseline_bytes == pytest.approx(reading.ram_baseline_bytes, rel=0.05)
    assert weights[0] == 1


def test_loading_that_failed_has_no_reading():
    def load():
        with LoadWatch("cpu", libraries=()) as watch:
            watches.append(watch)
            raise ValueError("damaged checkpoint")

    watches = []
    with pytest.raises(ValueError, match="damaged"):
        load()
    with pytest.raises(MeasurementError, match="not loaded inside"):
        _ = watches[0].reading


def test_a_device_without_an_instrument_is_an_error():
    with pytest.raises(MeasurementError, match="device 'mps'"):
        instrument_for("mps")
