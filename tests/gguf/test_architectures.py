"""Every architecture that the export promises: converted, computed, planned."""

import pytest
import torch

from ewq.backends.llama_cpp import load_llama_cpp
from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.gguf_header import read_header
from ewq.gguf.export import export_gguf, make_job
from ewq.gguf.recipe import PlanRecipe, make_recipe
from ewq.planning.analysis import analyze
from ewq.variants import Precision
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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RANDOM = {
    "Qwen2": {},
    "Phi3": {"pad_token_id": 0, "original_max_position_embeddings": 256},
    "Gemma2": {
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    # Their configs as transformers 5 saves them lack keys that the converter reads.
    "GPTNeoX": {},
    "Falcon": {"alibi": False, "multi_query": True, "num_ln_in_parallel_attn": 1},
    "Cohere2": {"sliding_window": 8, "pad_token_id": 0, "logit_scale": 1.0},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 96},
    # llama.cpp normalises the chosen experts' weights, as every published Qwen3-MoE does.
    "Qwen3Moe": {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
}
COMPUTED = ("Qwen2", "Phi3", "Gemma2", "Qwen3Moe", "GPTNeoX", "Falcon", "Cohere2")
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


@pytest.fixture(params=[*COMPUTED, *TRAINED])
def folder(request, tmp_path):
    require_gguf()
    require_converter()
    if request.param in RANDOM:
        # llama.cpp expects certain tokens of a model whose name says Phi-3: no such name here.
        return save_random(request.param, tmp_path / "model")
    return fixture_path(request.param)


def test_conversion_keeps_the_distributions_and_plans_find_every_matrix(folder, tmp_path):
    file = export_gguf(folder, tmp_path / "f32.gguf", make_recipe("F32")).path
    theirs, ours = distributions(folder, file)
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 1e-4
    entropy = float(-(theirs.exp() * theirs).sum(-1).mean())
    assert entropy < 6.5, "near the 6.93 nats of a uniform distribution, agreement shows nothing"
    header = read_header(file)
    plan = analyze(folder, cache=False).uniform_plan(Precision.FOUR_BIT)
    planned = make_job(header, PlanRecipe(plan), tmp_path / "x").types
    matrices = {tensor.name for tensor in header.tensors if len(tensor.shape) > 1}
    routers = {name for name in matrices if "ffn_gate_inp" in name}
    assert set(planned) == matrices - routers


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_experts_take_the_plans_type_and_routers_stay_as_they_are(family, tmp_path):
    require_converter()
    folder = save_random(family, tmp_path / "model")
    plan = analyze(folder, cache=False).uniform_plan(Precision.EIGHT_BIT)
    report = export_gguf(folder, tmp_path / "q8.gguf", make_recipe(plan=plan))
    types = {tensor.name: tensor.stored for tensor in report.tensors}
    experts = [kind for name, kind in types.items() if "_exps.weight" in name]
    routers = [kind for name, kind in types.items() if "ffn_gate_inp" in name]
    assert len(experts) == 6
    assert set(experts) == {"Q8_0"}
    assert set(routers) == {"F32"}


def distributions(folder, file):
    reference = load_transformers(folder)
    model = load_llama_cpp(file, reference.tokenizer, threads=1)
    text = "The rule is old, but nobody has tried it on such a small thing. "
    ids = reference.tokenizer(text * 8)["input_ids"][:120]
    both = [torch.cat(list(each.logprobs(ids, 1))) for each in (reference, model)]
    model.close()
    reference.close()
    return both
