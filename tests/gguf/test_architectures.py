"""Every architecture that the export promises: converted, computed, planned."""

import pytest
import torch

from ewq.backends.llama_cpp import LlamaCppOptions, load_llama_cpp
from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.gguf_header import read_header
from ewq.gguf import export_gguf
from ewq.gguf.export import make_job
from ewq.gguf.recipe import PlanRecipe
from ewq.planning.analysis import analyze
from ewq.precision import Precision
from tests.gguf.models import require_converter, require_gguf

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""The wide initialisation keeps distributions far from uniform, where every error would hide."""
RANDOM = {
    "Qwen2": {},
    "Phi3": {"pad_token_id": 0, "original_max_position_embeddings": 256},
    "Gemma2": {
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
TRAINED = ("tiny-qwen3", "tiny-gemma3", "tiny-mistral")


def save_random(family, folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(fixture_path("tiny-qwen3"))
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), **WIDTHS, **RANDOM[family]
    )
    torch.manual_seed(3)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=[*RANDOM, *TRAINED])
def folder(request, tmp_path):
    require_gguf()
    require_converter()
    if request.param in RANDOM:
        # llama.cpp expects certain tokens of a model whose name says Phi-3: no such name here.
        return save_random(request.param, tmp_path / "model")
    return fixture_path(request.param)


def test_conversion_keeps_the_distributions_and_plans_find_every_matrix(folder, tmp_path):
    file = export_gguf(folder, tmp_path / "f32.gguf", type_name="F32").path
    theirs, ours = distributions(folder, file)
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 1e-4
    entropy = float(-(theirs.exp() * theirs).sum(-1).mean())
    assert entropy < 6.5, "near the 6.93 nats of a uniform distribution, agreement shows nothing"
    header = read_header(file)
    plan = analyze(folder, cache=False).uniform_plan(Precision.FOUR_BIT)
    planned = make_job(header, PlanRecipe(plan), tmp_path / "x").types
    matrices = {tensor.name for tensor in header.tensors if len(tensor.shape) > 1}
    assert set(planned) == matrices


def distributions(folder, file):
    reference = load_transformers(folder)
    model = load_llama_cpp(file, reference.tokenizer, LlamaCppOptions(threads=1))
    text = "The rule is old, but nobody has tried it on such a small thing. "
    ids = reference.tokenizer(text * 8)["input_ids"][:120]
    both = [torch.cat(list(each.logprobs(ids, 1))) for each in (reference, model)]
    model.close()
    reference.close()
    return both
