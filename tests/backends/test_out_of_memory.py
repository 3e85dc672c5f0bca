import gc
import weakref

import pytest
import torch

from ewq.backends.out_of_memory import memory_failures_named
from ewq.backends.transformers import load_transformers
from ewq.errors import MeasurementError
from tests.backends.tiny_models import NoTokenizer, save_tiny

REASON = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of ..."


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


def exhaust(*_, **__):
    raise torch.OutOfMemoryError(REASON)


@pytest.mark.parametrize(
    ("reason", "needed"), [(REASON, "20.50 GiB more needed"), ("gone", "an unknown amount")]
)
def test_the_error_states_what_was_needed(reason, needed):
    with pytest.raises(MeasurementError, match=needed), memory_failures_named("loading x"):
        raise torch.OutOfMemoryError(reason)


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="other"), memory_failures_named("loading"):
        raise RuntimeError("other")


def test_nothing_is_held_by_the_error():
    def fail():
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        exhaust(tensor)

    held = []
    with pytest.raises(MeasurementError) as caught, memory_failures_named("scoring"):
        fail()
    gc.collect()
    assert held[0]() is None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("use", "doing"),
    [
        (lambda m: m.last_logprobs([3], [[4]], [5]), "scoring"),
        (lambda m: m.generate([[3, 4]], 2), "generating"),
    ],
    ids=["scoring", "generating"],
)
def test_running_out_while_in_use_is_named_and_the_model_still_closes(
    llama, monkeypatch, use, doing
):
    model = load_transformers(llama, tokenizer=NoTokenizer())
    monkeypatch.setattr(type(model._model), "forward", exhaust)
    with pytest.raises(MeasurementError, match=doing):
        use(model)
    model.close()


def test_running_out_while_loading_is_named(llama, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", exhaust)
    with pytest.raises(MeasurementError, match="loading"):
        load_transformers(llama, tokenizer=NoTokenizer())
