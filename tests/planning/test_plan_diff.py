from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ewq.errors import PlanError
from ewq.planning.analysis import Analysis, analyze
from ewq.planning.diff import diff_plans
from ewq.planning.plan import QuantizationPlan
from ewq.variants import Precision
from tests.architectures import build


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(folder)
    return analyze(folder, cache=False)


def poc(**precisions: str) -> QuantizationPlan:
    entries = {key.removeprefix("b"): value for key, value in precisions.items()}
    return QuantizationPlan.from_json({"plan": entries})


def test_only_blocks_that_move_are_listed_and_sizes_add_up(analysis: Analysis):
    raw, four = analysis.uniform_plan(Precision.RAW), analysis.uniform_plan(Precision.FOUR_BIT)
    first = analysis.plan(target_bpw=20, scorer="first")

    found = diff_plans({"raw": raw, "four": four, "first": first})

    assert [move.name for move in found.moves] == ["model.layers.0", "model.layers.1"]
    assert found.moves[0].precisions[:2] == (Precision.RAW, Precision.FOUR_BIT)
    for index, plan in enumerate((raw, four, first)):
        moved = sum(move.size_bytes[index] - move.size_bytes[0] for move in found.moves)
        assert found.size_deltas_bytes[index] == moved == plan.size_bytes - raw.size_bytes


def test_equal_plans_have_no_moves(analysis: Analysis):
    found = diff_plans({"a": analysis.plan(0.65), "b": analysis.plan(0.65)})

    assert (found.moves, found.size_deltas_bytes) == ((), (0, 0))


def test_a_mixed_block_moves_with_one_of_its_weights(analysis: Analysis):
    plan = analysis.plan(0.1, granularity="tensor")
    name = next(iter(plan.weights))
    other = Precision.RAW if plan.weights[name] is not Precision.RAW else Precision.FOUR_BIT
    found = diff_plans({"a": plan, "b": replace(plan, weights={**plan.weights, name: other})})

    block = next(block.name for block in plan.blocks if name.startswith(f"{block.name}."))
    assert [(move.name, move.precisions) for move in found.moves] == [(block, (None, None))]


def test_sizes_for_different_storage_are_not_subtracted(analysis: Analysis):
    found = diff_plans({"a": analysis.plan(), "b": analysis.plan(target="gguf")})

    assert found.size_deltas_bytes == (0, None)


def test_poc_plans_are_compared_by_block(analysis: Analysis):
    found = diff_plans({"a": poc(b0="raw", b1="4-bit"), "b": poc(b0="raw", b1="8-bit")})

    assert [move.name for move in found.moves] == ["block 1"]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["plans"][0]["plan"] == {"0": "raw", "1": "4bit"}
    assert data["plans"][1]["size_delta_bytes"] is None


def test_a_poc_plan_is_compared_with_one_of_ours(analysis: Analysis):
    found = diff_plans(
        {"poc": poc(b0="raw", b1="4-bit"), "ours": analysis.uniform_plan(Precision.RAW)}
    )

    assert [move.name for move in found.moves] == ["model.layers.1"]


def test_plans_that_name_different_blocks_are_refused():
    with pytest.raises(PlanError, match="plans of different models"):
        diff_plans({"a": poc(b0="raw", b1="raw"), "b": poc(b0="raw", b2="raw")})


def test_plans_of_different_models_are_refused(analysis: Analysis, tmp_path: Path):
    plan = analysis.plan()
    with pytest.raises(PlanError, match=r"2 blocks.* b of .*1 blocks.*different models"):
        diff_plans({"a": plan, "b": poc(b0="raw")})
    with pytest.raises(PlanError, match=r"a is a plan of .*different models"):
        diff_plans({"a": plan, "b": replace(plan, fingerprint="sha256:" + "0" * 64)})
    with pytest.raises(PlanError, match="1 plan given"):
        diff_plans({"a": plan})
