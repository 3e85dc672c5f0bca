import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.gguf_header import read_header
from ewq.errors import EwqError, InputError, PlanError
from ewq.gguf import export as export_module
from ewq.gguf.cache import cached_gguf, export_notes
from ewq.gguf.export import export_command, export_gguf
from ewq.gguf.recipe import make_recipe
from ewq.variants import Precision
from tests.gguf.models import BLOCKS, ODD_WIDTH, save_odd

RAW, EIGHT, FOUR = Precision.RAW, Precision.EIGHT_BIT, Precision.FOUR_BIT
PRECISIONS = [RAW, FOUR, EIGHT, FOUR, RAW, EIGHT, RAW, RAW, EIGHT, FOUR, RAW, EIGHT]
TYPES = {RAW: "F16", EIGHT: "Q8_0", FOUR: "Q4_K"}
assert len(PRECISIONS) == BLOCKS
assert PRECISIONS[1] != PRECISIONS[10], "blk.1 and blk.10 must be told apart"


@pytest.fixture(scope="module")
def plan(deep):
    from ewq.planning.analysis import analyze

    base = analyze(deep, cache=False).uniform_plan(RAW)
    block = re.compile(r"layers\.(\d+)\.")
    weights = {name: PRECISIONS[int(block.search(name)[1])] for name in base.weights}
    return replace(base, weights=weights)


@pytest.fixture(scope="module")
def mixed(deep_base, plan, deep, gguf_cache, tmp_path_factory):
    """A plan applied, with its report."""
    return export_gguf(
        deep, tmp_path_factory.mktemp("mixed") / "mixed.gguf", make_recipe(plan=plan)
    )


def test_the_files_types_are_the_plans(mixed):
    stored = {tensor.name: tensor.dtype for tensor in read_header(mixed.path).tensors}
    for index, precision in enumerate(PRECISIONS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            assert stored[f"blk.{index}.{part}.weight"] == TYPES[precision], (index, part)
        fallen = {**TYPES, FOUR: "Q5_0"}
        assert stored[f"blk.{index}.ffn_down.weight"] == fallen[precision]
    assert stored["token_embd.weight"] == stored["output.weight"] == "F16"


def test_the_report_is_that_of_the_file(mixed):
    header = read_header(mixed.path)
    assert {t.name: (t.stored, t.nbytes) for t in mixed.tensors} == {
        t.name: (t.dtype, t.nbytes) for t in header.tensors
    }
    assert mixed.weights_bytes == sum(mixed.bytes_by_type.values())
    assert mixed.file_bytes == mixed.path.stat().st_size
    assert mixed.bits_per_weight == pytest.approx(8 * header.weights_bytes / header.parameters)


def test_fallbacks_are_reported_with_their_cost(mixed):
    values = 256 * ODD_WIDTH
    expected = values * 22 // 32 - values * 144 // 256
    assert {t.name: (t.wanted, t.stored, t.extra_bytes) for t in mixed.fallbacks} == {
        f"blk.{index}.ffn_down.weight": ("Q4_K", "Q5_0", expected)
        for index, precision in enumerate(PRECISIONS)
        if precision is FOUR
    }


def test_the_planner_foresaw_the_size(mixed, plan, deep):
    from ewq.checkpoint.layout import find_layout
    from ewq.checkpoint.opening import open_checkpoint
    from ewq.planning.sizes import FORMATS

    checkpoint = open_checkpoint(deep)
    foreseen = sum(
        FORMATS["gguf"].nbytes(weight, plan.weights[name])
        for name, weight in find_layout(checkpoint).details.items()
    )
    in_file = sum(
        t.nbytes for t in mixed.tensors if re.match(r"blk\.\d+\.(attn|ffn)_\w+\.w", t.name)
    )
    norms = sum(t.nbytes for t in mixed.tensors if t.name.endswith("_norm.weight"))
    blocks_norms = norms - next(t.nbytes for t in mixed.tensors if t.name == "output_norm.weight")
    assert in_file - blocks_norms == foreseen


def test_a_fresh_process_loads_and_generates_without_ewq(mixed):
    script = (
        "import llama_cpp, sys\n"
        "model = llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False)\n"
        "out = list(zip(range(8), model.generate([5, 6, 7], top_k=1)))\n"
        "assert 'ewq' not in sys.modules\n"
        "print(len(out))\n"
    )
    command = [sys.executable, "-c", script, str(mixed.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("8", 0), done.stderr


def test_transformers_opens_the_file(mixed, deep):
    import torch
    from transformers import AutoModelForCausalLM

    opened = AutoModelForCausalLM.from_pretrained(
        mixed.path.parent, gguf_file=mixed.path.name, dtype=torch.float32
    )
    original = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32)
    for index, exact in ((0, True), (1, False)):
        ours = opened.get_parameter(f"model.layers.{index}.self_attn.q_proj.weight")
        theirs = original.get_parameter(f"model.layers.{index}.self_attn.q_proj.weight")
        close = torch.allclose(ours, theirs, atol=1e-6)
        assert close is exact
        assert torch.allclose(ours, theirs, atol=0.02)


def test_other_types_per_precision(deep, deep_base, plan, gguf_cache):
    types = {RAW: "BF16", EIGHT: "Q6_K", FOUR: "Q5_0"}
    path = cached_gguf(deep, make_recipe(plan=plan, types=types), gguf_cache)
    stored = {tensor.name: tensor.dtype for tensor in read_header(path).tensors}
    for index, precision in enumerate(PRECISIONS):
        assert stored[f"blk.{index}.attn_q.weight"] == types[precision]
    assert stored["token_embd.weight"] == "BF16"


def test_a_plan_of_another_model_is_refused(plan, gguf_cache, tmp_path):
    with pytest.raises(PlanError):
        export_gguf(fixture_path("tiny-llama"), tmp_path / "out.gguf", make_recipe(plan=plan))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K_M", "F16"])
def test_a_gguf_is_exported_to_another_type(deep_base, tmp_path, type_name):
    report = export_gguf(deep_base, tmp_path / "out.gguf", make_recipe(type_name))
    assert report.path.is_file()
    assert type_name.removesuffix("_M") in report.bytes_by_type
    fallbacks = {tensor.stored for tensor in report.fallbacks}
    assert fallbacks == ({"Q8_0", "Q5_0"} if type_name == "Q4_K_M" else set())
    assert len(report.notes) == bool(fallbacks), "rows that fit no K-quant are said"


def test_quantizing_twice_is_said(tmp_path, deep_base):
    first = export_gguf(deep_base, tmp_path / "first.gguf", make_recipe("Q8_0"))
    second = export_gguf(first.path, tmp_path / "second.gguf", make_recipe("Q4_K_M"))
    assert any("quantized before" in note for note in second.notes)


@pytest.mark.parametrize("type_name", ["Q9_X", "NONSENSE", "MIXED"])
def test_unknown_types_are_refused(tmp_path, deep_base, type_name):
    with pytest.raises(InputError, match=f"no type '{type_name}'"):
        export_gguf(deep_base, tmp_path / "out.gguf", make_recipe(type_name))


def test_a_folder_is_no_output(tmp_path, deep_base):
    with pytest.raises(InputError, match="name the file to write"):
        export_gguf(deep_base, tmp_path, make_recipe("Q8_0"))


class Stopped(BaseException):
    """Not an error: what a user's interrupt looks like."""


@pytest.mark.parametrize("step", ["run_quantizer", "read_back"])
def test_an_interrupted_export_leaves_nothing(tmp_path, deep_base, monkeypatch, step):
    def stop(*args, **kwargs):
        raise Stopped

    out = tmp_path / "out.gguf"
    out.write_bytes(b"what was there before")
    monkeypatch.setattr(export_module, step, stop)
    with pytest.raises(Stopped):
        export_gguf(deep_base, out, make_recipe("Q8_0"))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [
        ("out.gguf", b"what was there before")
    ]


def test_a_type_nobody_asked_for_is_an_error(mixed, deep_base):
    from ewq.gguf.report import read_back

    wanted = {"blk.1.attn_q.weight": "Q8_0"}
    with pytest.raises(EwqError, match=r"blk\.1\.attn_q\.weight is stored as Q4_K, Q8_0 was asked"):
        read_back(mixed.path, read_header(deep_base), wanted, {})


def test_the_command_matches_each_tensor_alone(deep, deep_base, plan, mixed):
    script = export_command(deep, mixed.path, make_recipe(plan=plan))
    convert, quantize = script.split(" && \\\n")
    assert shlex.split(convert)[:2] == ["python", "convert_hf_to_gguf.py"]
    words = shlex.split(quantize)
    rules = [words[i + 1].split("=") for i, word in enumerate(words) if word == "--tensor-type"]
    for tensor in mixed.tensors:
        found = [kind for pattern, kind in rules if re.search(pattern, tensor.name)]
        assert found == ([tensor.wanted.lower()] if tensor.wanted else []), tensor.name
    assert words[0] == "llama-quantize"
    assert words[-2:] == [str(mixed.path), "Q8_0"]


def test_the_command_of_a_plain_type_is_a_conversion(tmp_path, gguf_cache):
    out = tmp_path / "x.gguf"
    words = shlex.split(export_command(fixture_path("tiny-llama"), out, make_recipe("F16")))
    assert words[-4:] == ["--outtype", "f16", "--outfile", str(out)]


def importance(path, names, columns, scale):
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    for name in names:
        sums = np.full((1, columns), 1.0, np.float32)
        sums[0, : columns // 2] = scale
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_importance_matrix_changes_what_is_stored(deep_base, tmp_path):
    import gguf

    names = [tensor.name for tensor in read_header(deep_base).tensors if ".attn_q." in tensor.name]
    values = []
    for scale in (1.0, 1e4):
        matrix = importance(tmp_path / "imatrix.gguf", names, 256, scale)
        out = tmp_path / "out.gguf"
        export_gguf(deep_base, out, make_recipe("Q4_K_S", imatrix=matrix))
        found = {t.name: t for t in gguf.GGUFReader(out).tensors}
        values.append(np.array(found["blk.0.attn_q.weight"].data))
    assert (values[0] != values[1]).any()


def test_a_wrong_importance_matrix_is_refused(deep_base, tmp_path):
    (tmp_path / "m.dat").write_bytes(b"\x05\0\0\0junk")
    with pytest.raises(EwqError, match="too few for a GGUF"):
        export_gguf(
            deep_base, tmp_path / "o.gguf", make_recipe("Q4_K_S", imatrix=tmp_path / "m.dat")
        )


def test_an_importance_matrix_of_another_model_is_refused(deep_base, tmp_path):
    matrix = importance(tmp_path / "imatrix.gguf", ["model.layers.0.q_proj"], 256, 2.0)
    with pytest.raises(InputError, match=r"has no entry for any tensor .* made for another model"):
        export_gguf(deep_base, tmp_path / "o.gguf", make_recipe("Q4_K_S", imatrix=matrix))
    assert not (tmp_path / "o.gguf").exists()


def test_what_an_importance_matrix_did_not_do_is_said(deep_base, tmp_path):
    matrix = importance(tmp_path / "imatrix.gguf", ["blk.0.attn_q.weight"], 256, 2.0)
    out = tmp_path / "o.gguf"
    idle = export_gguf(deep_base, out, make_recipe("Q8_0", imatrix=matrix))
    assert "imatrix.gguf had no effect" in idle.notes[-1]
    partial = export_gguf(deep_base, out, make_recipe("Q4_K_S", imatrix=matrix))
    every = 7 * BLOCKS
    assert f"no entry for {every - 1} of {every} quantized tensors" in partial.notes[-1]


@pytest.mark.parametrize("type_name", ["IQ2_XS", "Q2_K_S", "IQ1_M"])
def test_a_type_that_needs_importances_is_refused_without(type_name):
    with pytest.raises(InputError, match=f"{type_name} needs --imatrix"):
        make_recipe(type_name)


def test_rows_that_no_type_divides_are_noted_for_a_recipe_of_llama_cpp_too(tmp_path, gguf_cache):
    odd = save_odd(tmp_path / ("m" * 247))
    path = cached_gguf(odd, make_recipe("Q4_K_M"), gguf_cache)
    report = export_gguf(odd, tmp_path / "o.gguf", make_recipe("Q4_K_M"))
    assert len(report.fallbacks) == 16
    assert {tensor.stored for tensor in report.fallbacks} == {"F16"}
    assert report.bits_per_weight > 16
    assert report.notes[0].startswith("16 tensors have rows that the blocks of their type do not")
    assert "Q4_K -> F16" in report.notes[0]
    assert export_notes(path) == report.notes[:1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A bfloat16 model with one weight that float16 cannot hold."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = save_odd(tmp_path_factory.mktemp("wide"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[WIDE][3, 5] = torch.tensor(-99_840.0)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


WIDE = "model.layers.1.mlp.up_proj.weight"


def test_a_weight_that_becomes_infinite_in_f16_is_refused_before_anything_is_written(
    wide, gguf_cache, tmp_path
):
    from ewq.planning.analysis import analyze

    plan = analyze(wide, cache=False).uniform_plan(RAW)
    out = tmp_path / "new" / "o.gguf"
    for recipe, instead in (
        (make_recipe("F16"), "--type BF16"),
        (make_recipe(plan=plan), "--types raw=BF16"),
    ):
        message = rf"{re.escape(WIDE)} holds 99,840, which F16 cannot.*use {instead}"
        with pytest.raises(InputError, match=message):
            export_gguf(wide, out, recipe)
        with pytest.raises(InputError, match=message):
            cached_gguf(wide, recipe, tmp_path / "cache")
    assert not list(tmp_path.iterdir())
    report = export_gguf(wide, out, make_recipe(plan=plan, types={RAW: "BF16"}))
    assert "F16" not in report.bytes_by_type


@pytest.mark.parametrize("type_name", ["BF16", "F32"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_a_checkpoint_that_is_not_finite_is_no_file(type_name, value, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = save_odd(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors[WIDE][3, 5] = torch.tensor(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{re.escape(WIDE)} holds values that are not finite"):
        export_gguf(folder, tmp_path / "o.gguf", make_recipe(type_name))


def test_a_fallback_to_f16_that_cannot_hold_a_weight_names_the_tensor(wide, tmp_path):
    with pytest.raises(EwqError, match=r"could not quantize blk\.1\.ffn_up\.weight: "):
        export_gguf(wide, tmp_path / "o.gguf", make_recipe("Q4_K_M"))
    assert not list(tmp_path.iterdir())


def test_the_cache_is_keyed_by_content(deep, deep_base, plan, gguf_cache):
    first = cached_gguf(deep, make_recipe(plan=plan), gguf_cache)
    stamp = first.stat().st_mtime_ns
    assert cached_gguf(deep, make_recipe(plan=plan), gguf_cache) == first
    assert first.stat().st_mtime_ns == stamp
    other = replace(plan, weights={**plan.weights, next(iter(plan.weights)): FOUR})
    assert cached_gguf(deep, make_recipe(plan=other), gguf_cache) != first
    assert cached_gguf(deep, make_recipe("BF16"), gguf_cache) == deep_base


def test_a_name_of_many_bytes_is_cut_between_characters(deep, tmp_path, gguf_cache):
    folder = tmp_path / ("\N{GRINNING FACE}" * 60)
    shutil.copytree(deep, folder)
    name = cached_gguf(folder, make_recipe("Q8_0"), gguf_cache).name
    assert name.startswith("\N{GRINNING FACE}" * 15 + "-q8_0-")


def test_a_damaged_cache_entry_is_made_again(deep, deep_base, gguf_cache):
    path = cached_gguf(deep, make_recipe("Q8_0"), gguf_cache)
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    assert cached_gguf(deep, make_recipe("Q8_0"), gguf_cache) == path
    assert path.read_bytes() == whole
