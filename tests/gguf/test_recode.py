"""Exports whose matrices are rounded on a calibration text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import EwqError
from ewq.gguf import gptq
from ewq.gguf.export import export_gguf
from ewq.gguf.recipe import make_recipe
from ewq.sensitivity.calibration import Calibration
from ewq.sensitivity.gradients import SecondMoments
from tests.gguf.models import require_converter

RNG = np.random.default_rng(5)
CALIBRATION = Calibration(tuple(tuple(RNG.integers(3, 200, 64).tolist()) for _ in range(6)))


@pytest.fixture(scope="module")
def tiny():
    require_converter()
    return fixture_path("tiny-llama")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """The same recipe with ggml's own rounding, and rounded on the calibration text."""
    folder = tmp_path_factory.mktemp("recode")
    plain, ours = folder / "plain.gguf", folder / "gptq.gguf"
    export_gguf(tiny, plain, make_recipe("Q4_0"))
    export_gguf(tiny, ours, make_recipe("Q4_0"), calibration=CALIBRATION)
    return plain, ours


def tensors(path):
    import gguf

    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_size_types_and_other_tensors_stay(files):
    plain, ours = files
    assert ours.stat().st_size == plain.stat().st_size
    before, after = tensors(plain), tensors(ours)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    matrices = {name for name in before if name.startswith("blk.") and "norm" not in name}
    assert changed == {*matrices, "output.weight"}


def test_outputs_of_a_layer_are_closer(tiny, files):
    plain, ours = files
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    name = "model.layers.2.mlp.down_proj.weight"
    moments = SecondMoments(model, [name])
    for ids in CALIBRATION.sequences:
        moments.add(ids)
    mean = moments.means()[name]
    weight = model.get_parameter(name).detach().numpy()
    errors = [
        np.einsum("ij,jk,ik->", change, mean, change)
        for change in (tensors(path)["blk.2.ffn_down.weight"] - weight for path in (plain, ours))
    ]
    assert errors[1] < 0.8 * errors[0]


def test_passes_of_few_matrices_give_the_same_file(tiny, files, tmp_path, monkeypatch):
    monkeypatch.setattr(gptq, "MOMENTS_BYTES", 40_000)
    export_gguf(tiny, tmp_path / "few.gguf", make_recipe("Q4_0"), calibration=CALIBRATION)
    assert (tmp_path / "few.gguf").read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("source", "type_name", "message"),
    [
        ("made", "Q4_0", "needs the Hugging Face folder"),
        ("tiny-llama", "F16", "F16 rounds nothing"),
    ],
)
def test_what_cannot_be_rounded_is_refused(files, tmp_path, source, type_name, message):
    model = files[0] if source == "made" else fixture_path(source)
    out = tmp_path / "out.gguf"
    with pytest.raises(EwqError, match=message):
        export_gguf(model, out, make_recipe(type_name), calibration=CALIBRATION)
    assert list(tmp_path.iterdir()) == []
