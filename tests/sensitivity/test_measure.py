"""Sensitivity against brute force: the gradients of every sequence, kept whole."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError, MeasurementError
from ewq.sensitivity import measure
from ewq.sensitivity.calibration import Calibrating, Calibration
from ewq.sensitivity.gradients import _int8_rounding
from ewq.sensitivity.measure import measure_sensitivity
from tests.architectures import ARCHITECTURES as ALL
from tests.architectures import build
from tests.gguf.writer import gguf_bytes

CALIBRATION = Calibration(
    tuple(tuple(1 + (7 * s + 3 * t * t) % 60 for t in range(24)) for s in range(5))
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))


def saved(tmp_path, name):
    torch.manual_seed(11)
    build(name).save_pretrained(tmp_path / name)
    return tmp_path / name


def measured(folder, **options):
    return measure_sensitivity(open_checkpoint(folder), CALIBRATION, Calibrating(**options))


def full_fisher(folder, names):
    """Squared gradients of every weight, sequence by sequence, with the same sampled labels."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    parameters = {n: p for n, p in model.named_parameters() if n in names}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for index, ids in enumerate(CALIBRATION.sequences):
        model.zero_grad()
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        labels = torch.multinomial(
            logits.softmax(-1), 1, generator=torch.Generator().manual_seed(index)
        )[:, 0]
        (-logits.log_softmax(-1).gather(1, labels[:, None]).sum()).backward()
        for name, parameter in parameters.items():
            total[name] += parameter.grad**2
    return total


def stack(values, flipped):
    values = values if values.ndim == 3 else values[None]
    return (values.transpose(1, 2) if flipped else values).double().numpy()


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "mixtral"])
def test_rows_and_columns_are_those_of_the_full_fisher_diagonal(tmp_path, architecture):
    folder = saved(tmp_path, architecture)
    found = measured(folder)
    full = full_fisher(folder, found.matrices)
    assert len(full) > 8
    for name, fisher in full.items():
        flipped = architecture == "gpt2" and ".h." in name
        exact = stack(fisher, flipped)
        matrix = found.matrices[name]
        np.testing.assert_allclose(matrix.rows, exact.sum(2), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(matrix.columns, exact.sum(1), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(found.matrices[name].squares.sum(), exact.sum(), rtol=1e-4)


def test_factored_costs_are_near_those_of_the_full_diagonal(tmp_path):
    folder = saved(tmp_path, "llama")
    found = measured(folder)
    noise = np.random.default_rng(0)
    for name, fisher in full_fisher(folder, found.matrices).items():
        squares = noise.uniform(0, 1, fisher.shape)
        exact = (fisher.double().numpy() * squares).sum() / (2 * CALIBRATION.tokens)
        rows, columns = found.weighting(name)
        factored = rows[0] @ squares @ columns[0]
        assert factored == pytest.approx(exact, rel=0.1), name


def inputs_of(folder, modules):
    """Mean squared inputs by hooks on the modules themselves."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = {name: [] for name in modules}
    for name in modules:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0][0]))
    with torch.no_grad():
        for ids in CALIBRATION.sequences:
            model(input_ids=torch.tensor([ids]))
    return {name: torch.cat(parts).double().square().mean(0) for name, parts in seen.items()}


@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        ("llama", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]),
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]),
    ],
)
def test_importance_is_the_mean_squared_input(tmp_path, architecture, modules):
    folder = saved(tmp_path, architecture)
    found = measured(folder)
    for module, expected in inputs_of(folder, modules).items():
        np.testing.assert_allclose(
            found.matrices[f"{module}.weight"].mean_squares[0], expected.numpy(), rtol=1e-5
        )


def test_rounding_inputs_costs_their_gradients_times_the_variance_of_a_step(tmp_path):
    folder = saved(tmp_path, "llama")
    module = "model.layers.0.mlp.down_proj"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []

    def keep(_, args):
        args[0].retain_grad()
        seen.append(args[0])

    model.get_submodule(module).register_forward_pre_hook(keep)
    expected = 0.0
    for index, ids in enumerate(CALIBRATION.sequences):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        labels = torch.multinomial(
            logits.softmax(-1), 1, generator=torch.Generator().manual_seed(index)
        )
        logits.log_softmax(-1).gather(1, labels).sum().backward()
        inputs = seen[-1]
        step = inputs.detach().abs().amax(-1, keepdim=True) / 127
        expected += float((inputs.grad**2 * step**2 / 12).sum())
    found = measured(folder).input_rounding_cost(f"{module}.weight")
    assert found == pytest.approx(expected / (2 * CALIBRATION.tokens), rel=1e-4)


def test_columns_of_outliers_are_not_rounded():
    inputs = torch.tensor([[1.0, 127.0], [2.0, 0.5]])
    variance, kept = _int8_rounding(inputs)
    assert kept.tolist() == [False, True]
    np.testing.assert_allclose(variance, [(1 / 127) ** 2 / 12, (2 / 127) ** 2 / 12], rtol=1e-6)


def test_an_expert_has_the_inputs_of_the_tokens_that_chose_it(tmp_path):
    found = measured(saved(tmp_path, "mixtral"))
    gate_up = found.matrices["model.layers.0.mlp.experts.gate_up_proj"]
    router = found.matrices["model.layers.0.mlp.gate.weight"]
    # Two experts a token; over experts their inputs add up to twice the router's.
    assert gate_up.tokens.sum() == 2 * CALIBRATION.tokens
    assert len(set(gate_up.tokens)) > 1
    np.testing.assert_allclose(gate_up.inputs.sum(0), 2 * router.inputs[0], rtol=1e-5)


def test_an_expert_that_saw_no_token_is_told(tmp_path):
    found = measured(saved(tmp_path, "mixtral"))
    assert found.notes() == ()
    gate_up = found.matrices["model.layers.1.mlp.experts.gate_up_proj"]
    gate_up.tokens[2] = 0
    assert "1 experts saw no token" in found.notes()[0]
    assert "layers.1" in found.notes()[0]


def test_a_pass_that_stopped_goes_on_to_the_same_sums(tmp_path, monkeypatch):
    folder = saved(tmp_path, "llama")
    whole = measured(folder, cache=False)
    monkeypatch.setattr(measure, "KEPT_EVERY", 1)
    calls = interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        measured(folder)
    monkeypatch.undo()
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    calls = interrupt_after(monkeypatch, 99)
    resumed = measured(folder)
    assert calls == [3, 4]
    for name, matrix in whole.matrices.items():
        np.testing.assert_allclose(resumed.matrices[name].rows, matrix.rows, rtol=1e-6)
        np.testing.assert_allclose(
            resumed.matrices[name].squares, whole.matrices[name].squares, rtol=1e-6
        )
    measured(folder)
    assert calls == [3, 4], "a finished pass is not run again"


def interrupt_after(monkeypatch, sequences):
    from ewq.sensitivity.gradients import GradientSums

    calls, add = [], GradientSums.add

    def counted(self, ids, seed):
        if len(calls) == sequences:
            raise KeyboardInterrupt
        calls.append(seed)
        return add(self, ids, seed)

    monkeypatch.setattr(GradientSums, "add", counted)
    return calls


def test_a_damaged_entry_of_the_cache_is_measured_again(tmp_path):
    folder = saved(tmp_path, "llama")
    first = measured(folder)
    (entry,) = (tmp_path / "cache" / "sensitivity").glob("*.npz")
    entry.write_bytes(entry.read_bytes()[:1000])
    again = measured(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(again.matrices[name].rows, first.matrices[name].rows)


def test_other_sequences_and_other_labels_are_other_entries(tmp_path):
    folder = saved(tmp_path, "llama")
    name = "model.layers.0.mlp.up_proj.weight"
    first = measured(folder).matrices[name].rows
    assert not np.allclose(measured(folder, seed=1).matrices[name].rows, first)


def test_broken_weights_are_one_line(tmp_path):
    folder = saved(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MeasurementError, match="not finite"):
        measured(folder)


def test_a_gguf_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    with pytest.raises(CheckpointError, match="needs the Hugging Face folder"):
        measured(path)


def test_the_error_of_a_sum_is_that_over_sequences(tmp_path):
    found = measured(saved(tmp_path, "llama"))
    name = "model.layers.0.mlp.up_proj.weight"
    squares = found.matrices[name].squares
    expected = 3 * squares.std(ddof=1) / squares.mean() / np.sqrt(5)
    assert found.stderr({name: 3.0}) == pytest.approx(expected)


@pytest.mark.parametrize("architecture", sorted(ALL))
def test_every_planned_weight_of_every_family_is_measured(tmp_path, architecture):
    torch.manual_seed(11)
    build(architecture).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    found = measure_sensitivity(
        checkpoint, Calibration(CALIBRATION.sequences[:2]), Calibrating(cache=False)
    )
    for name, weight in find_layout(checkpoint).details.items():
        rows, columns = found.weighting(name)
        assert rows.size * weight.in_features == weight.numel or weight.expert, name
        # Phi-MoE's router chooses without a gradient.
        assert rows.sum() > 0 or name.endswith("mlp.router.weight"), name
        assert columns.sum() == pytest.approx(len(columns)), name
        assert found.matrices[name].tokens.any(), name
