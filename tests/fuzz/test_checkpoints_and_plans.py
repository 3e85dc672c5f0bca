"""Mutated configs, indices and plans: a right result, or one line; nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ewq.checkpoint.layout import check_original
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.cli.terminal import plan_lines
from ewq.errors import InputError
from ewq.planning.analysis import analyze
from ewq.planning.diff import diff_plans
from ewq.planning.plan import QuantizationPlan, check_budget, check_plan, read_plan, write_plan
from tests.fuzz.json_values import as_text, fuzzed, mutated
from tools.odd_folders import INDEX, sharded, sound

CONFIG = "config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "model"
    sound(path)
    return path


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    path = folder.with_name("shards")
    shutil.copytree(folder, path)
    sharded(path)
    return path


@pytest.fixture(scope="module")
def plan(folder: Path) -> QuantizationPlan:
    # With room for both formats: a plan that is not changed must pass every check below.
    made = analyze(folder, cache=False).plan(target_bpw=14.5, target="gguf")
    use(made, made, open_checkpoint(folder))
    return made


def require_one_line(error: InputError) -> None:
    event("refused")
    assert "\n" not in str(error)


def planned(folder: Path) -> QuantizationPlan | None:
    """A plan of a folder, or ``None`` where it was refused in one line."""
    try:
        made = analyze(folder, cache=False).plan(0.65)
        check_original(open_checkpoint(folder))
    except InputError as error:
        require_one_line(error)
        return None
    assert json.loads(json.dumps(made.to_json(), allow_nan=False))
    return made


def use(plan: QuantizationPlan, other: QuantizationPlan, checkpoint: Checkpoint) -> None:
    """What commands do with a plan that they have read."""
    check_plan(plan, checkpoint)
    check_budget(plan, checkpoint, "nf4")
    diff_plans({"one": other, "other": plan}).to_json()
    list(plan_lines(plan, 1000))


@fuzzed
@given(data=st.data())
def test_a_mutated_config_gives_a_plan_or_a_line(data: st.DataObject, folder: Path):
    path = folder / CONFIG
    sound_text = path.read_bytes()
    document = json.loads(sound_text)
    try:
        path.write_bytes(data.draw(as_text(mutated(document))))
        planned(folder)
    finally:
        path.write_bytes(sound_text)
    assert planned(folder)


@fuzzed
@given(data=st.data())
def test_a_mutated_index_gives_the_same_plan_or_a_line(
    data: st.DataObject, shards: Path, folder: Path
):
    path = shards / INDEX
    sound_text = path.read_bytes()
    try:
        path.write_bytes(data.draw(as_text(mutated(json.loads(sound_text)))))
        made = planned(shards)
    finally:
        path.write_bytes(sound_text)
    if made is not None:
        assert made.weights == analyze(folder, cache=False).plan(0.65).weights


@fuzzed
@given(data=st.data())
def test_a_mutated_plan_is_read_whole_or_refused(
    data: st.DataObject, plan: QuantizationPlan, folder: Path, tmp_path_factory
):
    place = tmp_path_factory.mktemp("plans")
    path = place / "plan.json"
    path.write_bytes(data.draw(as_text(mutated(plan.to_json()))))
    try:
        found = read_plan(path)
        write_plan(found, place / "again.json")
        assert read_plan(place / "again.json") == found
        use(found, plan, open_checkpoint(folder))
    except InputError as error:
        require_one_line(error)
    assert {entry.name for entry in place.iterdir()} <= {"plan.json", "again.json"}
