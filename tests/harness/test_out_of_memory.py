"""Running out of memory names what was needed and what is free."""

import pytest
import torch

from ewq.errors import MeasurementError
from ewq.harness.out_of_memory import reported


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("refused"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "cuda", "torch-cpu"],
)
def test_it_becomes_one_line_with_free_bytes(error):
    with pytest.raises(MeasurementError, match=r"fp16: out of memory on cpu: .*[\d,]+ bytes are"):
        with reported("fp16", "cpu"):
            raise error


def test_needed_bytes_are_named_where_they_are_known():
    with pytest.raises(MeasurementError, match="take 16,000 bytes"):
        with reported("fp16", "cpu", needed_bytes=16_000):
            raise MemoryError


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes"), reported("fp16", "cpu"):
        raise RuntimeError("shapes do not match")
