from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ewq import files
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import EwqError, PlanError
from ewq.planning.analysis import analyze
from ewq.planning.plan import QuantizationPlan, check_budget, check_plan, read_plan, write_plan
from ewq.planning.sizes import format_of
from ewq.variants import Precision
from tests.architectures import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plan(folder: Path) -> QuantizationPlan:
    return analyze(folder, cache=False).plan(0.65)


def test_a_written_plan_is_read_back_equal(plan: QuantizationPlan, tmp_path: Path):
    path = write_plan(plan, tmp_path / "new" / "plan.json")

    assert read_plan(path) == plan
    assert read_plan(path).digest == plan.digest
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.json"]


def test_the_file_has_the_keys_of_the_contract(plan: QuantizationPlan):
    contract = (
        "schema model fingerprint architecture scorer granularity rule mean std thresholds "
        "blocks weights bits_per_weight size_bytes ewq_version"
    )
    data = json.loads(json.dumps(plan.to_json()))

    assert set(contract.split()) <= set(data)
    assert data["schema"] == 1
    assert data["rule"] == {"kind": "factor", "factor": 0.65}
    assert set(data["thresholds"]) == {"raw", "8bit"}
    assert {"index", "name", "numel", "entropy", "precision"} <= set(data["blocks"][0])


def test_the_digest_is_about_what_the_plan_does(plan: QuantizationPlan):
    assert plan.digest == replace(plan, model="elsewhere", ewq_version="9").digest
    first = next(iter(plan.weights))
    changed = {**plan.weights, first: Precision.FOUR_BIT}
    assert plan.digest != replace(plan, weights=changed, size_bytes=plan.size_bytes - 1).digest
    assert plan.digest.startswith("sha256:")


def test_what_a_plan_does_not_name_is_raw(plan: QuantizationPlan):
    assert "lm_head.weight" not in plan.weights
    for block in plan.blocks:
        name = f"{block.name}.mlp.up_proj.weight"
        assert plan.weights[name] is block.precision


def without(key: str):
    return lambda data: {name: value for name, value in data.items() if name != key}


def changed(**values: object):
    return lambda data: {**data, **values}


DAMAGED = {
    "no weights": (without("weights"), r"lacks keys: weights"),
    "unknown key": (changed(colour="red"), r"has unknown keys: colour"),
    "schema 9": (changed(schema=9), r"has schema 9; this ewq reads 1"),
    "no schema": (without("schema"), r"has schema None"),
    "precision": (
        changed(weights={"a": "3bit"}),
        r"weights\.a: expected one of raw, 8bit, 4bit, found '3bit'",
    ),
    "blocks": (changed(blocks=[{"index": 0}]), r"blocks\[0\] lacks keys: entropy, name, numel"),
    "blocks a number": (changed(blocks=7), r"blocks: expected a list, found 7"),
    "size infinite": (changed(size_bytes=float("inf")), r"size_bytes: expected a whole number"),
    "mean null": (changed(mean=None), r"mean: expected a number, found None"),
    "weights a list": (changed(weights=[]), r"weights: expected keys and values, found \[\]"),
    "a list": (lambda data: [data], r"holds no JSON object"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_plan_is_refused(name: str, plan: QuantizationPlan, tmp_path: Path):
    damage, message = DAMAGED[name]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(damage(plan.to_json())))

    with pytest.raises(PlanError, match=message):
        read_plan(path)


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "\x00", "[" * 100_000],
    ids=["missing", "empty", "cut", "binary", "deep"],
)
def test_an_unreadable_plan_is_refused(text: str | None, tmp_path: Path):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(PlanError, match="cannot read the plan"):
        read_plan(path)


POC = {"0": "raw", "1": "4-bit", "2": "8-bit", "10": "raw"}


def test_the_proof_of_concepts_plan_is_read_in_block_order(tmp_path: Path):
    path = tmp_path / "quant_plan_0123abcd.json"
    path.write_text(json.dumps({"plan": POC}))

    plan = read_plan(path)

    assert [block.index for block in plan.blocks] == [0, 1, 2, 10]
    assert [block.precision for block in plan.blocks] == ["raw", "4bit", "8bit", "raw"]
    assert json.loads(json.dumps(plan.to_json(), allow_nan=False))["mean"] is None


UNKNOWN_ENTRIES = [{"0": "2-bit"}, {"zero": "raw"}, {"0": ["raw"]}, {"²": "raw"}]


@pytest.mark.parametrize(
    "entry", UNKNOWN_ENTRIES, ids=["precision", "index", "list", "superscript"]
)
def test_an_unknown_entry_of_a_poc_plan_is_refused(entry: dict[str, str], tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"plan": entry}))

    with pytest.raises(PlanError, match="which is unknown"):
        read_plan(path)


def test_a_plan_fits_its_own_checkpoint(plan: QuantizationPlan, folder: Path):
    check_plan(plan, open_checkpoint(folder))


def test_a_plan_for_other_weights_names_the_first_few(plan: QuantizationPlan, folder: Path):
    checkpoint = open_checkpoint(folder)
    fewer = dict(list(plan.weights.items())[2:])

    with pytest.raises(PlanError, match=r"does not cover 2 weights: model\.layers\.0\."):
        check_plan(replace(plan, weights=fewer), checkpoint)
    with pytest.raises(PlanError, match=r"names, but the model lacks, 1 weights: zz\.weight"):
        check_plan(replace(plan, weights={**plan.weights, "zz.weight": Precision.RAW}), checkpoint)


def test_a_plan_of_the_same_shape_for_another_model_is_refused(
    plan: QuantizationPlan, folder: Path, tmp_path: Path
):
    model = build("llama")
    model.model.embed_tokens.weight.data += 1
    model.save_pretrained(tmp_path)

    with pytest.raises(PlanError, match=f"was made for .*{folder.name}.*not for"):
        check_plan(plan, open_checkpoint(tmp_path))


def test_a_poc_plan_is_not_applied(folder: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"plan": POC}))

    with pytest.raises(PlanError, match="names blocks but no weights"):
        check_plan(read_plan(path), open_checkpoint(folder))


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_plan_as_it_was(
    plan: QuantizationPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "plan.json"
    path.write_text("old")
    # Space runs out where the kernel reports it: when the data is forced to disk.
    monkeypatch.setattr(files.os, "fsync", no_space)

    with pytest.raises(EwqError, match=r"cannot write .*plan\.json: No space left on device"):
        write_plan(plan, path)

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_writing_into_a_full_device_is_one_line(plan: QuantizationPlan):
    with pytest.raises(EwqError, match="cannot write"):
        write_plan(plan, Path("/dev/full/plan.json"))


def test_a_folder_that_cannot_be_made_is_one_line(plan: QuantizationPlan, tmp_path: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(EwqError, match=r"cannot write .*plan\.json"):
        write_plan(plan, tmp_path / "file" / "plan.json")


def test_a_read_only_folder_is_one_line(plan: QuantizationPlan, tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(EwqError, match="Permission denied"):
            write_plan(plan, tmp_path / "plan.json")
    finally:
        tmp_path.chmod(0o700)


def test_a_budget_that_does_not_hold_in_the_other_format_is_refused_with_both_sizes(folder: Path):
    checkpoint = open_checkpoint(folder)
    analysis = analyze(folder, cache=False)
    raw = analysis.uniform_plan(Precision.RAW)
    tight = analysis.plan(target_size_bytes=raw.size_bytes - 1)

    for target in ("gguf", "nf4-double"):
        same = analysis.footprint.nbytes(tight.weights, format_of(target))
        if same <= raw.size_bytes - 1:
            check_budget(tight, checkpoint, target)
            continue
        made = f"at most {raw.size_bytes - 1} bytes as nf4, where it takes {tight.size_bytes}"
        with pytest.raises(PlanError, match=rf"{made}, but takes {same} as {target}: plan with"):
            check_budget(tight, checkpoint, target)


@pytest.mark.parametrize("rule", ["factor", "loose", "bits", "same target"])
def test_a_budget_that_holds_and_a_factor_are_good_in_any_format(folder: Path, rule: str):
    analysis = analyze(folder, cache=False)
    low, high = (analysis.uniform_plan(kind) for kind in (Precision.FOUR_BIT, Precision.RAW))
    plans = {
        "factor": lambda: analysis.plan(0.65),
        "loose": lambda: analysis.plan(target_size_bytes=2 * high.size_bytes),
        "bits": lambda: analysis.plan(target_bpw=40),
        "same target": lambda: analysis.plan(target_size_bytes=low.size_bytes),
    }

    target = "nf4" if rule == "same target" else "gguf"
    check_budget(plans[rule](), open_checkpoint(folder), target)


def test_bits_per_weight_are_a_budget_too(folder: Path):
    plan = analyze(folder, cache=False).plan(target_bpw=16)

    with pytest.raises(PlanError, match=r"as nf4, where it takes \d+, but takes \d+ as gguf"):
        check_budget(plan, open_checkpoint(folder), "gguf")
