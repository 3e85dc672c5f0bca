import pytest

from ewq.checkpoint.opening import open_checkpoint
from ewq.fit.prepare import converted, open_fitting
from ewq.sensitivity.calibration import Calibrating
from tests.gguf.models import require_converter, save_deep
from tests.session import alone, made_once

HOW = Calibrating(sequences=4, tokens=48)


@pytest.fixture(scope="session")
def checkpoint():
    require_converter()
    return open_checkpoint(made_once("deep", save_deep))


@pytest.fixture(scope="session")
def base(checkpoint):
    """The model as an unquantized GGUF file."""
    with alone("gguf"):
        return converted(checkpoint)


@pytest.fixture(scope="session")
def fitting(checkpoint, base):
    """The twelve-block model, costed for GGUF."""
    with alone("fitting"):
        return open_fitting(checkpoint, "gguf", HOW, rows_drawn=32)


@pytest.fixture(scope="session")
def for_bitsandbytes(checkpoint):
    with alone("fitting"):
        return open_fitting(checkpoint, "bitsandbytes", HOW, rows_drawn=32)
