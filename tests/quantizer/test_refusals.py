"""What must be refused before any weight is loaded, in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ewq.errors import CheckpointError, InputError, PlanError
from ewq.quantizer import EwqConfig
from ewq.quantizer.folder import quantize_to_folder
from ewq.variants import Precision
from tests.quantizer.models import load, plan_for, save, save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def nothing_loads(monkeypatch):
    """Any attempt to touch a weight fails the test."""

    def touched(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(
        transformers.modeling_utils, "convert_and_load_state_dict_in_model", touched
    )


def _with_weights(plan, change):
    weights = dict(plan.weights)
    change(weights)
    return dataclasses.replace(plan, weights=weights)


PLANS = {
    "unknown-weight": (
        lambda plan: _with_weights(plan, lambda w: w.update({"model.layers.9.x": Precision.RAW})),
        r"lacks, 1 weights: model\.layers\.9\.x",
    ),
    "missing-weight": (
        lambda plan: _with_weights(plan, lambda w: w.popitem()),
        r"does not cover 1 weights: model\.layers\.1",
    ),
    "other-fingerprint": (
        lambda plan: dataclasses.replace(plan, fingerprint="sha256:" + "0" * 64),
        "the plan was made for",
    ),
}


@pytest.mark.parametrize(("change", "message"), PLANS.values(), ids=PLANS)
@pytest.mark.usefixtures("nothing_loads")
def test_a_plan_that_does_not_fit_is_refused(folder, change, message):
    plan = change(plan_for(folder))

    with pytest.raises(PlanError, match=message) as error:
        load(folder, quantization_config=EwqConfig(plan=plan))

    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("nothing_loads")
def test_a_plan_for_a_model_of_the_same_shape_is_refused(folder, tmp_path):
    other = save("llama-tied", tmp_path)

    with pytest.raises(PlanError, match=f"made for {other}"):
        load(folder, quantization_config=EwqConfig(plan=plan_for(other)))


def _saved(folder, out):
    """A quantized folder in two shards or more."""
    model = load(folder, quantization_config=EwqConfig(plan=plan_for(folder)))
    model.save_pretrained(out, max_shard_size="20KB")
    return sorted(out.glob("*.safetensors"))


def test_a_folder_with_a_truncated_shard_is_refused(folder, tmp_path, nothing_loads_later):
    shards = _saved(folder, tmp_path)
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    nothing_loads_later()

    with pytest.raises(CheckpointError, match=shards[0].name):
        load_saved(tmp_path)


def test_a_folder_without_a_shard_is_refused(folder, tmp_path, nothing_loads_later):
    shards = _saved(folder, tmp_path)
    shards[-1].unlink()
    nothing_loads_later()

    with pytest.raises((CheckpointError, OSError), match=shards[-1].name):
        load_saved(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "precision"), [(".absmax", "4bit"), (".SCB", "8bit")], ids=["4bit", "8bit"]
)
def test_a_folder_that_lacks_scales_is_refused(
    folder, tmp_path, suffix, precision, nothing_loads_later
):
    load(folder, quantization_config=EwqConfig(plan=plan_for(folder))).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith(suffix)))
    save_file(tensors, path, metadata={"format": "pt"})
    nothing_loads_later()

    with pytest.raises(CheckpointError, match=rf"scales for \d+ {precision} weights"):
        load_saved(tmp_path)


@pytest.fixture
def nothing_loads_later(request):
    """As ``nothing_loads``, from the moment it is called."""
    return lambda: request.getfixturevalue("nothing_loads")


def load_saved(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


PRECISIONS = {
    "mixed": (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW),
    "8bit": (Precision.EIGHT_BIT,),
}


WITHOUT_EWQ = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        print("failed")
"""


def test_without_ewq_transformers_itself_names_the_unknown_method_and_fails(folder, tmp_path):
    for name, precisions in PRECISIONS.items():
        config = EwqConfig(plan=plan_for(folder, precisions))
        quantize_to_folder(folder, config, tmp_path / name)
    command = [sys.executable, "-c", WITHOUT_EWQ, *(str(tmp_path / name) for name in PRECISIONS)]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["failed"] * len(PRECISIONS)
    assert done.stderr.count("Unknown quantization type, got ewq") == len(PRECISIONS)
    for name in PRECISIONS:
        assert "import ewq.quantizer" in (tmp_path / name / "README.md").read_text()


def test_a_model_quantized_already_is_not_quantized_again(folder, tmp_path):
    config = EwqConfig(plan=plan_for(folder))
    quantize_to_folder(folder, config, tmp_path / "q")

    with pytest.raises(InputError, match=r"quantized already \(ewq\)"):
        quantize_to_folder(tmp_path / "q", config, tmp_path / "r")


OFFLOADED = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}


def test_offloading_is_refused_in_the_words_of_bitsandbytes_own_method(tmp_path):
    folder = save_llama(tmp_path)
    configs = (BitsAndBytesConfig(load_in_4bit=True), EwqConfig(plan=plan_for(folder)))
    said = []
    for config in configs:
        with pytest.raises(ValueError, match="llm_int8_enable_fp32_cpu_offload") as error:
            load(folder, quantization_config=config, device_map={**OFFLOADED, "lm_head": "cpu"})
        said.append(str(error.value))

    assert said[0] == said[1]


def test_the_proof_of_concepts_plans_name_no_weights_and_cannot_be_applied(folder, tmp_path):
    path = tmp_path / "poc.json"
    path.write_text(json.dumps({"plan": {"0": "raw", "1": "4-bit"}}))

    with pytest.raises(PlanError, match="make it again"):
        load(folder, quantization_config=EwqConfig(plan=path))


LARGE = "model.layers.1.mlp.up_proj.weight"


def _with_a_large_value(folder, dtype):
    """A model of ``dtype`` but for one weight in bfloat16 that holds 99,840."""
    save("llama", folder, dtype)
    tensors = load_file(folder / "model.safetensors")
    tensors[LARGE] = tensors[LARGE].bfloat16()
    tensors[LARGE].view(-1)[7] = 99_840
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_value_that_8_bits_cannot_hold_is_refused_by_name(tmp_path):
    folder = _with_a_large_value(tmp_path / "model", torch.bfloat16)
    config = EwqConfig(plan=plan_for(folder, (Precision.EIGHT_BIT,)))

    with pytest.raises(InputError, match=rf"{re.escape(LARGE)} holds 99,840.*raw or in 4 bits"):
        quantize_to_folder(folder, config, tmp_path / "quantized")

    assert not (tmp_path / "quantized").exists()


@pytest.mark.parametrize("precision", [Precision.RAW, Precision.FOUR_BIT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_infinity_is_written_where_a_value_fits_bfloat16_only(tmp_path, precision, dtype):
    folder = _with_a_large_value(tmp_path / "model", dtype)
    plan = plan_for(folder, (precision,))

    quantize_to_folder(folder, EwqConfig(plan=plan), tmp_path / "quantized")

    written = load_file(tmp_path / "quantized" / "model.safetensors")
    floats = {name: of for name, of in written.items() if of.is_floating_point()}
    assert [name for name, of in floats.items() if not of.isfinite().all()] == []
