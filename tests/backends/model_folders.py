"""Folders of each kind that people hold, made of the tiny Llama on the spot."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ewq.checkpoint.embedded import fixture_path

BASE = fixture_path("tiny-llama")
GROUP = 32


def load_plain(folder, dtype=torch.float16, **options):
    """As anybody loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def save(model, folder):
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    return folder


def bitsandbytes_nf4(folder):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return save(load_plain(BASE, quantization_config=config, device_map={"": "cpu"}), folder)


def bitsandbytes_int8(folder):
    config = BitsAndBytesConfig(load_in_8bit=True)
    return save(load_plain(BASE, quantization_config=config, device_map={"": "cpu"}), folder)


def tuned(folder):
    """A 16-bit twin: every weight has moved a little."""
    model, generator = load_plain(BASE), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += (torch.randn(parameter.shape, generator=generator) * 0.002).half()
    return save(model, folder)


def ewq_folder(folder):
    from ewq.planning.analysis import analyze
    from ewq.quantizer import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    quantize_to_folder(BASE, EwqConfig(plan=analyze(BASE).plan(factor=0.65)), folder)
    return folder


def lora(folder, base=BASE):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    peft.get_peft_model(load_plain(base, torch.float32), config).save_pretrained(folder)
    return folder


def compressed(folder, scheme):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    model = load_plain(BASE)
    group = preset_name_to_scheme(scheme, ["Linear"])
    if scheme == "W4A16":
        group.weights.group_size = GROUP
    config = QuantizationConfig(
        config_groups={"group_0": group}, ignore=["lm_head"], quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if (own := getattr(module, "quantization_scheme", None)) is not None:
            rows = module.weight.data.view(
                len(module.weight), -1, own.weights.group_size or module.in_features
            )
            scale = rows.abs().amax(-1) / (448 if own.weights.type == "float" else 7)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save(model, folder)
    compressor.update_config(folder)
    return folder


def compressed_w4a16(folder):
    return compressed(folder, "W4A16")


def compressed_fp8(folder):
    return compressed(folder, "FP8_DYNAMIC")


def torchao(folder, config):
    from transformers import TorchAoConfig

    options = {"quantization_config": TorchAoConfig(config), "device_map": {"": "cpu"}}
    return save(load_plain(BASE, torch.bfloat16, **options), folder)


def torchao_int8(folder):
    library = pytest.importorskip("torchao.quantization")
    return torchao(folder, library.Int8WeightOnlyConfig())


def torchao_int4(folder):
    library = pytest.importorskip("torchao.quantization")
    granularity = library.PerGroup(GROUP)
    return torchao(folder, library.IntxWeightOnlyConfig(torch.int4, granularity))


def packed(folder, quantization, pack):
    """A folder whose linear weights are replaced by what ``pack`` makes of each."""
    shutil.copytree(BASE, folder)
    stored = load_file(folder / "model.safetensors")
    tensors = {}
    for name, value in stored.items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            tensors |= {f"{module}.{part}": t.contiguous() for part, t in pack(value).items()}
        else:
            tensors[name] = value.half()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def four_bits(weight):
    """Codes 0 to 15 and scales of groups of inputs: ``[in, out]`` and ``[in / group, out]``."""
    groups = weight.T.reshape(-1, GROUP, len(weight))
    scales = (groups.abs().amax(1) / 7).half()
    codes = (groups / scales[:, None]).round().clamp(-8, 7) + 8
    return codes.reshape(weight.T.shape).int(), scales


def eight_in_one(codes, order=range(8)):
    """Eight codes of the last dimension in each int32."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8)[..., list(order)].to(torch.int64)
    whole = (parts << (4 * torch.arange(8))).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def gptq(folder):
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum.gptq")

    def pack(weight):
        codes, scales = four_bits(weight)
        return {
            "qweight": eight_in_one(codes.T).T,
            "qzeros": eight_in_one(torch.full_like(scales, 7).int()),
            "scales": scales,
            "g_idx": (torch.arange(len(codes)) // GROUP).int(),
        }

    how = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    return packed(folder, {"quant_method": "gptq", "checkpoint_format": "gptq", **how}, pack)


def awq(folder):
    pytest.importorskip("gptqmodel")

    def pack(weight):
        codes, scales = four_bits(weight)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        zeros = eight_in_one(torch.full_like(scales, 8).int(), order)
        return {"qweight": eight_in_one(codes, order), "qzeros": zeros, "scales": scales}

    how = {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return packed(folder, {"quant_method": "awq", **how}, pack)


KINDS = {
    "bitsandbytes-nf4": (bitsandbytes_nf4, "bitsandbytes nf4"),
    "bitsandbytes-int8": (bitsandbytes_int8, "bitsandbytes int8"),
    "tuned": (tuned, ""),
    "ewq": (ewq_folder, "ewq"),
    "compressed-w4a16": (compressed_w4a16, "compressed-tensors 4-bit"),
    "compressed-fp8": (compressed_fp8, "compressed-tensors 8-bit"),
    "torchao-int8": (torchao_int8, "torchao Int8WeightOnlyConfig"),
    "torchao-int4": (torchao_int4, "torchao IntxWeightOnlyConfig"),
    "gptq": (gptq, "gptq 4-bit"),
    "awq": (awq, "awq 4-bit"),
}
"""Name -> how it is made, and the method that its config tells."""
