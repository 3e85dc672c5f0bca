"""Running out of memory names what was needed and holds on to nothing; what collections see."""

import gc
import weakref

import pytest
import torch

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import MeasurementError
from ewq.harness.handle import collect_garbage, report_out_of_memory, set_libraries_aside
from ewq.harness.loading import load_variant
from ewq.harness.subject import Placement, Subject
from ewq.variants import find_variant

CUDA = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of ..."
CPU = "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (MemoryError("refused"), "an unknown amount more needed"),
        (torch.OutOfMemoryError(CUDA), "20.50 GiB more needed"),
        (RuntimeError(CPU), "9 bytes more needed"),
        (RuntimeError(CUBLAS), "an unknown amount more needed"),
    ],
    ids=["python", "cuda", "torch-cpu", "cublas"],
)
def test_it_becomes_one_line_with_needed_and_free_bytes(error, needed):
    line = rf"fp16: out of memory on cpu: {needed}; [\d,]+ of [\d,]+ bytes are free"
    with pytest.raises(MeasurementError, match=line) as caught, report_out_of_memory("fp16", "cpu"):
        raise error
    assert "\n" not in str(caught.value)


def test_the_bytes_of_the_weights_are_named_where_they_are_known():
    with pytest.raises(MeasurementError, match="take 16,000 bytes"):
        with report_out_of_memory("fp16", "cpu", needed_bytes=lambda: 16_000):
            raise MemoryError


def test_the_bytes_of_the_weights_are_not_asked_for_unless_memory_runs_out():
    with report_out_of_memory("fp16", "cpu", needed_bytes=lambda: 1 // 0):
        pass


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes"), report_out_of_memory("fp16", "cpu"):
        raise RuntimeError("shapes do not match")


def test_nothing_is_held_by_the_error():
    held = []

    def fail():
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError(CUDA)

    with pytest.raises(MeasurementError), report_out_of_memory("fp16", "cpu"):
        fail()
    gc.collect()
    assert held[0]() is None


def test_nothing_is_held_by_an_earlier_attempt_that_failed_too():
    held = []

    def fail():
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError(CUDA)

    def retry():
        try:
            fail()
        except torch.OutOfMemoryError:
            fail()

    with pytest.raises(MeasurementError) as caught, report_out_of_memory("fp16", "cpu"):
        retry()
    gc.collect()
    assert [each() for each in held] == [None, None]
    assert caught.value is not None


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-int8", "ewq-0.65"])
def test_running_out_while_quantizing_is_told_through_transformers(name, monkeypatch):
    """transformers catches the error and raises another that does not name it."""
    from ewq.quantizer import modules

    def run_out(*_, **__):
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(modules, "int8_vectorwise_quant", run_out)
    monkeypatch.setattr(modules.Bnb4bitQuantize, "convert", run_out)
    subject = Subject("tiny", str(fixture_path("tiny-llama")))
    with (
        pytest.raises(MeasurementError, match=r"20\.50 GiB more needed"),
        report_out_of_memory(name, "cpu"),
    ):
        load_variant(find_variant(name), subject, Placement("cpu", "float32"))


class Node:
    """Something that only a collection can free."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()


def test_what_comes_after_the_libraries_stays_collectable():
    set_libraries_aside()
    assert gc.get_freeze_count()
    later = weakref.ref(Node())
    collect_garbage()
    assert later() is None


def test_a_second_call_sets_nothing_more_aside():
    set_libraries_aside()
    model = Node()
    set_libraries_aside()
    later = weakref.ref(model)
    del model
    collect_garbage()
    assert later() is None
