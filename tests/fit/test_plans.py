"""Plans of types: within a size, below a divergence, and as the file that they describe."""

import json

import numpy as np
import pytest

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import InputError, PlanError
from ewq.fit.prepare import write_importance
from ewq.fit.run import Aim
from ewq.gguf.export import export_gguf
from ewq.gguf.imatrix import read_imatrix
from ewq.gguf.quantize import recipe_types
from ewq.gguf.recipe import make_recipe
from ewq.planning.plan import QuantizationPlan, check_plan, read_plan, write_plan

RULE = {"kind": "test"}


def middle(fitting):
    """A size that Q5_K or so would give."""
    tensors = fitting.target.tensors
    return fitting.target.fixed_stored_bytes + sum(t.matrix.numel * 5.6 / 8 for t in tensors)


@pytest.fixture(scope="module")
def plan(fitting):
    return fitting.within(middle(fitting), RULE)


@pytest.fixture(scope="module")
def exported(plan, fitting, checkpoint, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    imatrix = write_importance(fitting.sensitivity, base, folder / "imatrix.gguf")
    recipe = make_recipe(plan=plan, imatrix=imatrix)
    return export_gguf(checkpoint.path, folder / "fit.gguf", recipe, base=base), imatrix


def test_the_file_has_the_types_and_the_bytes_of_the_plan(plan, exported, fitting):
    report, _ = exported
    assert {tensor.name: tensor.stored for tensor in report.tensors} == dict(plan.types)
    assert report.weights_bytes == plan.size_bytes
    assert report.fallbacks == ()
    assert plan.size_bytes <= middle(fitting)
    assert report.file_bytes <= fitting.target.header_bytes + middle(fitting) + 200
    assert len(set(plan.types.values()) - {"F32"}) > 2


def test_embedding_and_head_have_types_of_their_own(plan):
    assert {"token_embd.weight", "output.weight"} < plan.types.keys()
    assert "BF16" not in (plan.types["token_embd.weight"], plan.types["output.weight"])


def test_costs_are_those_of_the_values_in_the_file(plan, exported, fitting, base):
    """Read the quantized file back and weigh its real errors."""
    from gguf import GGUFReader, dequantize

    def values(path, name):
        tensor = next(t for t in GGUFReader(path).tensors if t.name == name)
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    report, _ = exported
    weights = {tensor.name: tensor.matrix.name for tensor in fitting.target.tensors}
    for name in ("blk.10.ffn_down.weight", "blk.1.attn_v.weight"):
        error = (values(report.path, name) - values(base, name)) ** 2
        rows, columns = fitting.sensitivity.weighting(weights[name])
        cost = rows[0] @ error @ columns[0]
        assert fitting.costs[name][plan.types[name]] == pytest.approx(cost, rel=0.05)


def test_more_bytes_never_cost_more(fitting):
    sizes = [int(middle(fitting) * share) for share in (0.8, 0.9, 1.0, 1.2, 1.6, 4)]
    expected = [fitting.within(size, RULE).expected_kld.value for size in sizes]
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] == 0


def test_the_plan_beats_every_uniform_type_and_random_plans_of_its_size(fitting, plan):
    draw = np.random.default_rng(4)
    rivals = []
    for tensor_types in [
        *({t.name: kind for t in fitting.target.tensors} for kind in ("Q4_0", "Q5_0", "Q8_0")),
        *({t.name: str(draw.choice(t.types)) for t in fitting.target.tensors} for _ in range(20)),
    ]:
        rival = fitting.of_types(tensor_types, RULE)
        best = fitting.within(rival.size_bytes + 32 * len(tensor_types), RULE)
        assert best.expected_kld.value <= rival.expected_kld.value
        rivals.append(rival.expected_kld.value)
    assert len(set(rivals)) > 10


@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
def test_below_a_divergence_is_the_smallest_plan(fitting, plan, share):
    # A little more, because sums of costs are rounded.
    target = plan.expected_kld.value * share * (1 + 1e-9)
    found = fitting.below(target, RULE)
    assert found.expected_kld.value <= target * (1 + 1e-9)
    if share == 1.0:
        assert found.size_bytes <= plan.size_bytes


@pytest.mark.parametrize("granularity", ["kind", "block"])
def test_tensors_of_one_unit_have_one_type_or_its_nearest(fitting, plan, granularity):
    coarse = fitting.within(middle(fitting), RULE, granularity)
    assert coarse.expected_kld.value >= plan.expected_kld.value
    assert coarse.size_bytes <= middle(fitting)
    if granularity == "kind":
        downs = {t for name, t in coarse.types.items() if name.endswith("ffn_down.weight")}
        assert len(downs) == 1


def test_too_small_a_size_is_refused_with_the_range(fitting):
    with pytest.raises(PlanError, match=r"out of reach: this model takes \d+ to \d+ bytes"):
        fitting.within(1000, RULE)


@pytest.mark.parametrize("field", ["kld", "bpw"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_target_that_is_no_positive_number_is_refused(field, value):
    with pytest.raises(PlanError, match="expected a number above 0"):
        Aim(**{field: value})


def test_an_unknown_granularity_is_refused():
    with pytest.raises(InputError, match="known: tensor, kind, block"):
        Aim(bpw=5, granularity="layer")


def test_a_divergence_below_that_of_the_least_rounding_is_out_of_reach(for_bitsandbytes):
    with pytest.raises(PlanError, match="no plan of this model is below"):
        for_bitsandbytes.below(-1e-9, RULE)


def test_the_plan_file_is_schema_2_and_is_read_back_equal(plan, tmp_path, checkpoint):
    path = write_plan(plan, tmp_path / "plan.json")
    data = json.loads(path.read_text())
    assert data["schema"] == 2
    assert data["target"] == "gguf"
    assert data["weights"] == dict(plan.types)
    assert set(data["expected_kld"]) == {"value", "stderr"}
    assert data["calibration"].startswith("sha256:")
    assert read_plan(path) == plan
    check_plan(read_plan(path), checkpoint)


def test_a_plan_for_bitsandbytes_is_read_back_as_precisions_too(for_bitsandbytes, checkpoint):
    tensors = for_bitsandbytes.target.tensors
    size = for_bitsandbytes.target.fixed_bytes + sum(t.sizes["int8"] for t in tensors)
    plan = for_bitsandbytes.within(size, RULE)
    assert plan.target == "bitsandbytes"
    assert set(plan.types.values()) == {"raw", "int8", "nf4"}
    assert QuantizationPlan.from_json(plan.to_json()) == plan
    assert {name for name, kind in plan.types.items() if kind != "raw"} == set(plan.weights)
    check_plan(plan, checkpoint)


def test_each_engine_refuses_the_other_ones_plan(plan, for_bitsandbytes, checkpoint, tmp_path):
    from ewq.quantizer import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    other = for_bitsandbytes.within(10**9, RULE)
    with pytest.raises(PlanError, match="types of bitsandbytes, not of gguf"):
        export_gguf(checkpoint.path, tmp_path / "x.gguf", make_recipe(plan=other))
    with pytest.raises(PlanError, match="types of gguf, not of bitsandbytes"):
        quantize_to_folder(checkpoint.path, EwqConfig(plan), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_names_another_tensor_is_refused(plan, exported, checkpoint, base, tmp_path):
    data = plan.to_json()
    data["weights"]["blk.99.ffn_up.weight"] = data["weights"].pop("blk.1.ffn_up.weight")
    foreign = QuantizationPlan.from_json(data)
    recipe = make_recipe(plan=foreign, imatrix=exported[1])
    with pytest.raises(PlanError, match=r"blk\.1\.ffn_up\.weight is in one of them only"):
        export_gguf(checkpoint.path, tmp_path / "x.gguf", recipe, base=base)


def test_the_importance_matrix_holds_mean_squares_and_goes_into_the_file(exported, fitting):
    _, path = exported
    found = read_imatrix(path)
    matrix = fitting.sensitivity.matrices["model.layers.10.mlp.down_proj.weight"]
    np.testing.assert_allclose(found["blk.10.ffn_down.weight"], matrix.mean_squares[0], rtol=1e-5)
    assert "token_embd.weight" not in found, "it is only looked up"
    assert "output.weight" in found


def test_a_dry_run_tells_the_types_of_a_recipe(base, checkpoint, tmp_path):
    told = recipe_types(base, "Q4_K_M")
    recipe = make_recipe("Q4_K_M")
    report = export_gguf(checkpoint.path, tmp_path / "q.gguf", recipe, base=base)
    before = {tensor.name: tensor.dtype for tensor in read_header(base).tensors}
    changed = {t.name: t.stored for t in report.tensors if t.stored != before[t.name]}
    assert told == changed
    assert len(set(told.values())) > 1
