import pytest

from ewq.checkpoint.opening import open_checkpoint
from ewq.fit.prepare import calibrate, converted, prepare
from ewq.sensitivity.calibration import Calibrating
from tests.gguf.models import require_converter, save_deep
from tests.session import made_once

HOW = Calibrating(sequences=4, tokens=48)


@pytest.fixture(scope="session")
def checkpoint():
    require_converter()
    return open_checkpoint(made_once("deep", save_deep))


@pytest.fixture(scope="session")
def calibration(checkpoint):
    return calibrate(checkpoint, HOW)


@pytest.fixture(scope="session")
def base(checkpoint):
    """The model as an unquantized GGUF file."""
    return converted(checkpoint)


@pytest.fixture(scope="session")
def fitting(checkpoint, calibration):
    """The twelve-block model, costed for GGUF."""
    return prepare(checkpoint, calibration, HOW, rows_drawn=32)


@pytest.fixture(scope="session")
def for_bitsandbytes(checkpoint, calibration):
    return prepare(checkpoint, calibration, HOW, target="bitsandbytes", rows_drawn=32)
