from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.entropy import weights
from ewq.errors import BackendUnavailable, CheckpointError, InputError, PlanError
from ewq.planning.analysis import Analysis, analyze
from ewq.planning.plan import check_plan
from ewq.variants import Precision
from tests.architectures import build, linear_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EWQ_CACHE", str(folder))
    return folder


def saved(folder: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Path:
    build(name, dtype).save_pretrained(folder)
    return folder


def analysed(folder: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Analysis:
    return analyze(saved(folder, name, dtype), cache=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3-moe", "phi3"])
def test_statistics_are_those_of_the_loaded_weights(name: str, dtype: torch.dtype, tmp_path: Path):
    expected = linear_weights(build(name, dtype))

    statistics = analysed(tmp_path, name, dtype).statistics

    assert set(statistics) == set(expected)
    for weight, tensor in expected.items():
        wide = tensor.detach().double().reshape(-1)
        counts, _ = np.histogram(tensor.float().detach().numpy(), bins=256)
        shares = counts[counts > 0] / counts.sum()
        found = statistics[weight]
        assert found.numel == tensor.numel()
        assert found.variance == pytest.approx(float(wide.var(unbiased=False)), rel=1e-9)
        assert found.histogram_entropy == pytest.approx(
            -np.sum(shares * np.log2(shares)), abs=1e-12
        )
        assert found.softmax_entropy == pytest.approx(
            float(torch.distributions.Categorical(logits=wide).entropy()), abs=1e-9
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_nf4_errors_are_measured_along_outputs_when_a_scorer_asks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    passes: list[str] = []
    real = weights.measure_nf4_errors
    monkeypatch.setattr(
        weights, "measure_nf4_errors", lambda *given: passes.append("nf4") or real(*given)
    )
    analysis = analysed(tmp_path, name, torch.float32)
    analysis.plan()
    assert passes == []

    analysis.plan(scorer="nf4-error")
    plan = analysis.plan(scorer="nf4-error", granularity="tensor")

    assert passes == ["nf4"]
    for weight, tensor in linear_weights(build(name, torch.float32)).items():
        rows = tensor.detach().T if name == "gpt2" else tensor.detach()
        assert analysis.nf4_errors[weight] == pytest.approx(nf4_error(rows), rel=1e-5)
    assert plan.mean == pytest.approx(np.mean(list(analysis.nf4_errors.values())))


def nf4_error(tensor: torch.Tensor) -> float:
    """By bitsandbytes itself."""
    functional = pytest.importorskip("bitsandbytes").functional
    packed, state = functional.quantize_4bit(tensor.reshape(-1), quant_type="nf4", blocksize=64)
    back = functional.dequantize_4bit(packed, state)
    return float((back - tensor.reshape(-1)).double().norm() / tensor.double().norm())


def test_a_block_entropy_is_the_weighted_mean_of_its_weights(tmp_path: Path):
    analysis = analysed(tmp_path)
    plan = analysis.plan(0.65)

    for block, planned in zip(analysis.layout.blocks, plan.blocks, strict=True):
        entropies = [analysis.statistics[name].histogram_entropy for name in block.weights]
        numels = [analysis.statistics[name].numel for name in block.weights]
        assert planned.entropy == pytest.approx(np.average(entropies, weights=numels), abs=1e-12)
        assert planned.numel == sum(numels)
    entropies = [block.entropy for block in plan.blocks]
    assert plan.mean == pytest.approx(np.mean(entropies), abs=1e-12)
    assert plan.std == pytest.approx(np.std(entropies), abs=1e-12)
    assert plan.thresholds["8bit"] == pytest.approx(plan.mean - 0.65 * plan.std, abs=1e-12)


def test_a_plan_covers_its_own_model(tmp_path: Path):
    analysis = analysed(tmp_path)

    for granularity in ("block", "tensor"):
        check_plan(analysis.plan(granularity=granularity), open_checkpoint(tmp_path))


def test_tensor_plans_are_reported_by_block(tmp_path: Path):
    analysis = analysed(tmp_path)

    plan = analysis.plan(0.1, granularity="tensor")

    scores = [of.histogram_entropy for of in analysis.statistics.values()]
    assert plan.mean == pytest.approx(np.mean(scores))
    assert [block.precision for block in plan.blocks] == [None, None]
    assert plan.blocks[0].entropy == pytest.approx(analysis.plan().blocks[0].entropy)
    raw = [name for name, of in plan.weights.items() if of is Precision.RAW]
    assert min(analysis.statistics[name].histogram_entropy for name in raw) >= plan.mean


@pytest.mark.parametrize("target", ["nf4", "nf4-double", "gguf"])
@pytest.mark.parametrize("granularity", ["block", "tensor"])
def test_a_budget_is_met_from_below(granularity: str, target: str, tmp_path: Path):
    analysis = analysed(tmp_path)
    low = analysis.uniform_plan(Precision.FOUR_BIT, target=target)
    high = analysis.uniform_plan(Precision.RAW, target=target)

    for share in (0.0, 0.3, 0.7, 1.0):
        wanted = int(low.size_bytes + share * (high.size_bytes - low.size_bytes))
        plan = analysis.plan(target_size_bytes=wanted, target=target, granularity=granularity)
        assert low.size_bytes <= plan.size_bytes <= wanted
        by_bits = analysis.plan(
            target_bpw=plan.bits_per_weight + 1e-9, target=target, granularity=granularity
        )
        assert by_bits.weights == plan.weights
    below = low.size_bytes - 1
    bits = [f"{8 * size / analysis.footprint.numel:.3f}" for size in (below, low.size_bytes)]
    with pytest.raises(PlanError, match=f"{low.size_bytes} to {high.size_bytes} bytes") as refused:
        analysis.plan(target_size_bytes=below, target=target)
    assert f"a target of {below} bytes ({bits[0]} bits per weight)" in str(refused.value)
    assert f"({bits[1]} to " in str(refused.value)


def test_block_sizes_and_the_rest_add_up(tmp_path: Path):
    analysis = analysed(tmp_path)
    plan = analysis.plan(target_bpw=11)
    rest = sum(info.nbytes for info in analysis.footprint.rest)

    assert sum(block.size_bytes for block in plan.blocks) + rest == plan.size_bytes
    assert plan.bits_per_weight == 8 * plan.size_bytes / analysis.footprint.numel


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "mixtral", "gemma3-multimodal"])
def test_a_raw_plan_weighs_what_the_model_weighs(name: str, tmp_path: Path):
    model = build(name, torch.bfloat16)
    analysis = analysed(tmp_path, name)

    raw = analysis.uniform_plan(Precision.RAW)

    assert raw.size_bytes == sum(of.nbytes for of in model.parameters())
    assert analysis.footprint.numel == sum(of.numel() for of in model.parameters())
    assert raw.bits_per_weight == 16.0


def test_a_tied_head_that_was_saved_twice_counts_once(tmp_path: Path):
    saved(tmp_path, "llama-tied")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    one = analyze(tmp_path, cache=False).uniform_plan(Precision.RAW)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)

    other = analyze(tmp_path, cache=False).uniform_plan(Precision.RAW)

    assert one.size_bytes == other.size_bytes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_nan_or_infinity_names_the_tensor(value: float, dtype: torch.dtype, tmp_path: Path):
    path = saved(tmp_path, dtype=dtype) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of .* NaN"):
        analyze(tmp_path, cache=False)


UNMEASURABLE = {
    "empty": (torch.zeros(0, 32), "has no values at all"),
    "neighbours": (
        torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64).repeat(4, 16),
        "256 bins",
    ),
    "huge": (torch.full((4, 32), 1e300, dtype=torch.float64), "beyond float32"),
}


@pytest.mark.parametrize("case", UNMEASURABLE)
def test_a_weight_without_an_entropy_is_named(case: str, tmp_path: Path):
    tensor, message = UNMEASURABLE[case]
    path = saved(tmp_path) / "model.safetensors"
    save_file({**load_file(path), "model.layers.1.mlp.up_proj.weight": tensor}, path)

    with pytest.raises(CheckpointError, match=rf"1\.mlp\.up_proj\.weight of .*{message}"):
        analyze(tmp_path, cache=False)


def test_one_bad_expert_is_named_itself(tmp_path: Path):
    path = saved(tmp_path, "mixtral") / "model.safetensors"
    tensors = load_file(path)
    guilty = next(name for name in tensors if ".experts.2.w1" in name)
    tensors[guilty][0, 0] = float("inf")
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=guilty.replace(".", r"\.")):
        analyze(tmp_path, cache=False)


def test_integers_are_not_weights(tmp_path: Path):
    path = saved(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 32, dtype=torch.uint8)
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"up_proj\.weight is stored as U8"):
        analyze(tmp_path, cache=False)


FP8_SCALES = {
    "one for the tensor": ((), (1, 1)),
    "one per row": ((64, 1), (1, 1)),
    "tiles": ((3, 2), (24, 16)),
}


@pytest.mark.parametrize("kind", FP8_SCALES)
def test_fp8_is_measured_with_its_scales(kind: str, tmp_path: Path):
    shape, tile = FP8_SCALES[kind]
    path = saved(tmp_path) / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    values = torch.randn(64, 32).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    save_file({**load_file(path), name: values, f"{name}_scale_inv": scale}, path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": tile}
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = scale
    if kind == "tiles":
        whole = scale.repeat_interleave(24, 0)[:64].repeat_interleave(16, 1)
    expected = (values.float() * whole).double()

    analysis = analyze(tmp_path, cache=False)

    assert analysis.statistics[name].variance == pytest.approx(
        float(expected.var(unbiased=False)), rel=1e-6
    )
    stored = analysis.footprint.weights[name]
    assert stored.raw_bytes == 64 * 32 + scale.nbytes


def test_an_fp8_scale_of_the_wrong_shape_is_refused(tmp_path: Path):
    path = saved(tmp_path) / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    values = torch.randn(64, 32).to(torch.float8_e4m3fn)
    save_file({**load_file(path), name: values, f"{name}_scale_inv": torch.ones(5, 5)}, path)

    with pytest.raises(CheckpointError, match="does not fit"):
        analyze(tmp_path, cache=False)


class Recorder:
    """A progress sink that remembers, and can interrupt."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.total = self.done = self.calls = 0
        self.finished = False
        self._interrupt_after = interrupt_after
        self._lock = threading.Lock()

    def start(self, label: str, total: int, unit: str) -> None:
        self.total, self.unit = total, unit

    def advance(self, amount: int) -> None:
        with self._lock:
            self.done += amount
            self.calls += 1
            if self.calls == self._interrupt_after:
                raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished = True


def test_progress_counts_the_bytes_of_all_weights(tmp_path: Path):
    recorder = Recorder()
    analysis = analyze(saved(tmp_path), cache=False, progress=recorder)

    numel = sum(of.numel for of in analysis.statistics.values())
    assert (recorder.done, recorder.total, recorder.unit) == (2 * numel, 2 * numel, "bytes")
    assert recorder.finished


def test_an_interrupted_analysis_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, own_cache: Path
):
    recorder = Recorder(interrupt_after=3)
    threads = threading.active_count()

    with pytest.raises(KeyboardInterrupt):
        analyze(saved(tmp_path), progress=recorder)

    assert recorder.finished
    assert not [path for path in own_cache.rglob("*") if path.is_file()]
    assert threading.active_count() == threads
    assert analyze(tmp_path).plan(0.65).weights


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path, "mixtral")
    expected = analyze(tmp_path, cache=False).statistics

    monkeypatch.setattr("ewq.entropy.weights.usable_cores", lambda: workers)

    assert analyze(tmp_path, cache=False).statistics == expected


def test_counting_on_a_torch_device_gives_the_same_plan(tmp_path: Path):
    saved(tmp_path)

    on_device = analyze(tmp_path, cache=False, device="cpu").plan(0.65)

    assert on_device.weights == analyze(tmp_path, cache=False).plan(0.65).weights


def test_a_device_that_is_not_there_is_refused(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(BackendUnavailable, match="cannot compute on 'cuda'"):
        analyze(saved(tmp_path), cache=False, device="cuda")


def test_plans_are_refused_for_bad_requests(tmp_path: Path):
    analysis = analysed(tmp_path)

    with pytest.raises(PlanError, match="give only one of"):
        analysis.plan(0.65, target_bpw=8)
    with pytest.raises(InputError, match="unknown granularity 'row'"):
        analysis.plan(granularity="row")
    with pytest.raises(InputError, match="unknown scorer"):
        analysis.plan(scorer="vibes")
    for bits in (float("nan"), float("inf")):
        with pytest.raises(PlanError, match=f"target of {bits} bits"):
            analysis.plan(target_bpw=bits)


def test_controls_and_entropies_share_one_analysis(tmp_path: Path):
    analysis = analysed(tmp_path)

    def plan(scorer: str, seed: int = 0):
        plan = analysis.plan(target_bpw=11, scorer=scorer, seed=seed)
        return tuple(block.precision for block in plan.blocks)

    assert plan("first") == plan("last")[::-1]
    assert {plan("random", seed) for seed in range(20)} == {plan("first"), plan("last")}
    assert plan("histogram") == plan("reverse")[::-1]


def test_layout_and_statistics_have_the_same_order(tmp_path: Path):
    analysis = analysed(tmp_path, "qwen3-moe")

    assert tuple(analysis.statistics) == find_layout(open_checkpoint(tmp_path)).weights


def test_a_random_plan_says_what_it_was_drawn_with(tmp_path: Path):
    analysis = analysed(tmp_path)

    drawn, scored = analysis.plan(scorer="random", seed=3), analysis.plan()

    assert (drawn.rule["seed"], "seed" in scored.rule) == (3, False)
