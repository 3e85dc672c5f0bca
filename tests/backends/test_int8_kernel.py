"""The Triton kernels compute bitsandbytes' product: cases run where Triton interprets."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("int8_kernel_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_every_case_holds_in_the_interpreter():
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:benchmark")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "40 passed" in done.stdout
