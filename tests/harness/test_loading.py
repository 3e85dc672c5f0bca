"""From a recipe to a loaded model, on a tiny checkpoint."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ewq.errors import BackendUnavailable, CheckpointError, EwqError, InputError, PlanError
from ewq.gguf import probe
from ewq.harness import loading
from ewq.harness.loading import (
    _file_of,
    check_variant,
    get_ready,
    load_variant,
    same_model,
    warm_up,
    weights_bytes,
)
from ewq.harness.subject import Placement, Subject
from ewq.planning.plan import write_plan
from ewq.sensitivity.calibration import Calibrating
from ewq.variants import Precision, find_variant
from tests.gguf.models import require_converter, shared_gguf

CPU = Placement("cpu", "float32")
TINY = Path(__file__).parent.parent.parent / "fixtures" / "tiny-llama"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("tiny", str(TINY))


@pytest.mark.parametrize("name", ["ewq-0.65", "bnb-int8", "bnb-nf4"])
def test_missing_bitsandbytes_is_one_line_that_says_what_to_do(name, subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(EwqError, match="pip install bitsandbytes") as caught:
        get_ready(find_variant(name), subject, CPU)
    assert "\n" not in str(caught.value)


def test_fp16_needs_no_bitsandbytes(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    get_ready(find_variant("fp16"), subject, CPU)


def test_a_file_is_tried_before_the_clock_and_without_gpus(subject, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    file = tmp_path / "own.gguf"
    file.write_bytes(shared_gguf(TINY, "F16").read_bytes())
    tried = []

    def run(command, *, heard, environment, most_s):
        tried.append(environment["CUDA_VISIBLE_DEVICES"])
        return 0, ""

    monkeypatch.setattr(probe, "run_child", run)
    variant = find_variant(str(file))
    get_ready(variant, subject, CPU)
    assert tried == [""]
    load_variant(variant, subject, CPU).model.close()
    assert len(tried) == 1


@pytest.mark.parametrize(("device", "warmed"), [("cpu", []), ("cuda:0", [False])])
def test_libraries_are_warmed_up_on_a_gpu(subject, monkeypatch, device, warmed):
    seen = []
    monkeypatch.setattr(loading, "warm_up", lambda is_gguf, placement: seen.append(is_gguf))
    get_ready(find_variant("fp16"), subject, Placement(device, "float16"))
    assert seen == warmed


def test_warming_up_runs_every_kind_of_an_engine_once(monkeypatch):
    loaded = []
    real = load_variant

    def load(variant, *arguments):
        loaded.append(variant.name)
        return real(variant, *arguments)

    monkeypatch.setattr(loading, "load_variant", load)
    warm_up(False, CPU)
    warm_up(False, CPU)
    assert loaded == ["fp16", "bnb-nf4", "bnb-int8"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["fp16", "ewq-0.65", "bnb-int8", "bnb-nf4"])
def test_bytes_of_the_weights_are_foretold(name, dtype, subject):
    placement = Placement("cpu", dtype)
    foretold = weights_bytes(find_variant(name), subject, placement)
    loaded = load_variant(find_variant(name), subject, placement)
    try:
        held = sum(_held_bytes(one) for one in loaded.model._model.parameters())
    finally:
        loaded.model.close()
    assert foretold == pytest.approx(held, rel=0.01)


def _held_bytes(parameter) -> int:
    """Of the values and of the scales that bitsandbytes keeps beside them."""
    state = getattr(parameter, "quant_state", None)
    scales = state.absmax if state is not None else getattr(parameter, "SCB", None)
    return parameter.nbytes + (0 if scales is None else scales.nbytes)


@pytest.mark.parametrize("name", ["gguf-q8_0", "gguf-f16", "gguf-ewq-0.65"])
def test_bytes_of_a_gguf_are_foretold_without_making_it(name, subject, monkeypatch):
    pytest.importorskip("llama_cpp")
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_file_of", None)
        foretold = weights_bytes(find_variant(name), subject, CPU)
    file = _file_of(find_variant(name), subject)
    assert 0.85 * file.stat().st_size < foretold <= file.stat().st_size
    assert weights_bytes(find_variant(str(file)), subject, CPU) == file.stat().st_size


def test_a_gguf_of_another_model_is_refused(subject):
    pytest.importorskip("llama_cpp")
    other = shared_gguf(TINY.parent / "tiny-qwen3", "F16")
    with pytest.raises(CheckpointError, match="not a file of this model"):
        check_variant(find_variant(str(other)), subject, named=True)
    check_variant(find_variant(str(shared_gguf(TINY, "F16"))), subject, named=True)


@pytest.mark.parametrize("name", ["ewq-0.65", "bnb-nf4", "fit-300kb"])
def test_bitsandbytes_is_missed_at_the_start(name, subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackendUnavailable, match="pip install bitsandbytes"):
        check_variant(find_variant(name), subject, named=False)
    check_variant(find_variant("fp16"), subject, named=False)


@pytest.mark.parametrize("library", ["llama_cpp", "gguf"])
@pytest.mark.parametrize("name", ["gguf-q8_0", "gguf-ewq-0.65", "gguf-fit-q4_k_m"])
def test_llama_cpp_is_missed_at_the_start_where_it_was_asked_for(
    name, library, subject, monkeypatch
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'ewq\[gguf\]'"):
        check_variant(find_variant(name), subject, named=True)
    check_variant(find_variant(name), subject, named=False)


def test_a_plan_is_checked_for_the_engine_at_the_start(subject, tmp_path):
    pytest.importorskip("llama_cpp")
    plan = subject.analysis.plan(target_size_bytes=subject.analysis.plan(0.65).size_bytes)
    path = write_plan(plan, tmp_path / "nf4.json")
    check_variant(find_variant(str(path)), subject, named=True)
    with pytest.raises(PlanError, match="as gguf: plan with --for gguf"):
        check_variant(find_variant(f"gguf:{path}"), subject, named=True)


def test_a_recipe_that_llama_cpp_lacks_is_named_at_the_start(subject):
    pytest.importorskip("gguf")
    with pytest.raises(InputError, match="no type 'Q9_9'"):
        check_variant(find_variant("gguf-fit-q9_9"), subject, named=True)


@pytest.mark.parametrize("engine", ["", "gguf:"])
def test_a_plan_file_is_loaded_as_it_says(engine, subject, tmp_path):
    if engine:
        pytest.importorskip("llama_cpp")
    plan = subject.analysis.plan(target_bpw=20)
    path = write_plan(plan, tmp_path / "twenty.json")
    loaded = load_variant(find_variant(f"{engine}{path}"), subject, Placement("cpu", "float32"))
    loaded.model.close()
    assert loaded.plan is not None
    assert loaded.plan.digest == plan.digest != subject.plan(0.65).digest


def test_a_plan_file_of_another_model_is_refused(tmp_path):
    other = Subject("other", str(TINY.parent / "tiny-qwen3"))
    path = write_plan(other.plan(0.65), tmp_path / "foreign.json")
    with pytest.raises(PlanError, match="belongs to another model"):
        Subject("tiny", str(TINY)).plan(path)


def test_a_plan_file_that_is_none_is_refused(tmp_path, subject):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({"schema": 7}))
    with pytest.raises(PlanError, match="schema 7"):
        subject.plan(path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ewq-0.65", "ewq-0.6501", True),
        ("ewq-0.65", "ewq-0.0", False),
        ("ewq-0.65", "gguf-ewq-0.65", False),
        ("gguf-ewq-0.65", "gguf-ewq-0.6501", True),
        ("fp16", "fp16", False),
        ("ewq-0.65", "bnb-int8", False),
    ],
)
def test_variants_are_the_same_model_where_one_engine_gives_every_weight_one_type(
    subject, one, other, same
):
    assert same_model(find_variant(one), find_variant(other), subject) is same


@pytest.fixture(scope="module")
def calibrated():
    require_converter()
    how = Calibrating(sequences=4, tokens=64)
    return Subject("tiny", str(TINY), calibrating=how)


def test_a_fitted_gguf_is_no_larger_than_its_namesake_and_has_its_plans_types(calibrated):
    fitted, plain = find_variant("gguf-fit-q4_k_m"), find_variant("gguf-q4_k_m")
    size, most = (_file_of(each, calibrated).stat().st_size for each in (fitted, plain))
    assert 0.98 * most < size <= most
    loaded = load_variant(fitted, calibrated, CPU)
    loaded.model.close()
    assert loaded.plan.types["token_embd.weight"] != "F32"
    assert loaded.plan.expected_kld.value > 0


def test_a_recipe_with_an_importance_matrix_is_another_file_of_the_same_size(calibrated):
    plain, twin = find_variant("gguf-q4_k_m"), find_variant("gguf-q4_k_m-imatrix")
    paths = [_file_of(variant, calibrated) for variant in (plain, twin)]
    assert paths[0].stat().st_size == paths[1].stat().st_size
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_a_fitted_plan_is_loaded_with_bitsandbytes(calibrated):
    loaded = load_variant(find_variant("fit-480kb"), calibrated, CPU)
    loaded.model.close()
    assert set(loaded.plan.weights.values()) == {Precision.EIGHT_BIT, Precision.FOUR_BIT}
    assert loaded.plan.size_bytes <= 480_000


def test_nothing_is_fitted_to_random_weights(calibrated):
    dummy = replace(calibrated, is_dummy=True)
    with pytest.raises(BackendUnavailable, match="nothing to fit"):
        load_variant(find_variant("gguf-fit-q4_k_m"), dummy, CPU)
