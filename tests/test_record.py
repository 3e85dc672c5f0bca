"""Stored records: written as schema 2, read as schema 2 and 1, and decided by values alone."""

import json
from pathlib import Path

import pytest

from ewq.errors import InputError, MeasurementError
from ewq.gating.change import doubt_about
from ewq.gating.gates import judge, lost_in_doubt
from ewq.gating.thresholds import Limit
from ewq.measurement import NO_ITEMS, Doubt, DoubtKind, Items
from ewq.record import Reason, Record, Verdict
from ewq.report.rows import variant_rows
from ewq.report.sections.run import _CAUSES
from ewq.storage.runs import read_run
from tests.make_runs import letters, metric, record

SCHEMA_1 = Path("fixtures/golden/run_schema1.json")
OLD_WORDS = (
    "loaded from models/denoiser-7b",
    "models/chance-1b at chance",
    "throttle body, throttled, noisy",
    "against the baseline, accuracy: worse",
)


def stored_again(kept):
    return Record.from_json(json.loads(json.dumps(kept.to_json(), allow_nan=False)))


@pytest.mark.parametrize(
    "items",
    [
        NO_ITEMS,
        letters("AbCd"),
        Items({"prompt": ["a", "b"], "tokens": [[1, 2], [3]]}),
        Items({"domain": [], "nll": []}),
    ],
    ids=["none", "letters", "lists", "no rows"],
)
def test_a_record_is_read_as_it_was_stored(items):
    kept = record(
        items=items,
        verdict=Verdict.INCONCLUSIVE,
        reasons=(Reason(Verdict.INCONCLUSIVE, "a text", "p 0.2", "accuracy", worse=True),),
        doubts=(Doubt(DoubtKind.NOISE, "times vary", {"variation": 0.3}),),
        notes=("a note",),
    )
    assert stored_again(kept) == kept


def test_rows_carry_their_names():
    stored = Items({"domain": ["law", "code"], "nll": [1.5, 2.5]}).to_json()
    assert stored == {"fields": ["domain", "nll"], "rows": [["law", 1.5], ["code", 2.5]]}
    assert letters("AbC").to_json() == {"fields": ["answer"], "rows": "AbC"}


def test_a_field_that_items_lack_is_named():
    with pytest.raises(MeasurementError, match="no field 'nll'; they have answer"):
        letters("A").column("nll")


def test_columns_of_different_length_are_no_rows():
    with pytest.raises(MeasurementError, match="differ in length"):
        Items({"a": [1], "b": []})


def test_words_in_notes_change_no_verdict():
    asked, timed = {"accuracy": metric(0.25)}, {"decode_tokens_per_s": metric(9.0)}
    noted = [
        record("mmlu", metrics=asked, notes=OLD_WORDS),
        record("throughput", metrics=timed, notes=OLD_WORDS),
    ]
    for each in noted:
        (name,) = each.metrics
        assert judge(each, {name: Limit(min=0.1)}).verdict is Verdict.PASS
        assert doubt_about(name, each) is None
    (row,) = variant_rows(noted)
    assert not row.at_chance("mmlu")
    assert not row.clock_doubt


def test_words_in_reasons_and_doubts_change_no_verdict():
    reasons = tuple(Reason(Verdict.INCONCLUSIVE, text) for text in OLD_WORDS)
    assert not lost_in_doubt(record(verdict=Verdict.INCONCLUSIVE, reasons=reasons))
    named = record("throughput", doubts=(Doubt(DoubtKind.CHANCE, "noisy, throttled"),))
    assert doubt_about("decode_ratio", named) is None


def test_the_first_doubt_that_undermines_the_verdict_counts():
    kinds = (DoubtKind.CHANCE, DoubtKind.BUSY, DoubtKind.NOISE)
    doubts = tuple(Doubt(kind, kind.value) for kind in kinds)
    asked, timed = record(doubts=doubts), record("throughput", doubts=doubts)
    assert doubt_about("accuracy_delta", asked, Verdict.PASS).kind is DoubtKind.CHANCE
    assert doubt_about("accuracy_delta", asked, Verdict.FAIL) is None
    assert doubt_about("decode_ratio", timed, Verdict.FAIL).kind is DoubtKind.BUSY
    assert doubt_about("decode_ratio", timed, Verdict.INCONCLUSIVE) is None


@pytest.mark.parametrize("kind", DoubtKind)
def test_every_kind_of_doubt_undermines_a_pass_of_some_figure(kind):
    """And leaves counts alone: bytes are what they are."""
    doubted = [
        record(task, doubts=(Doubt(kind, "so"),)) for task in ("mmlu", "throughput", "memory")
    ]
    asked, timed, counted = doubted
    assert doubt_about("accuracy_delta", asked, Verdict.PASS) or doubt_about(
        "decode_ratio", timed, Verdict.PASS
    )
    assert doubt_about("weights_bytes", counted) is None
    assert kind in _CAUSES


@pytest.mark.parametrize("kind", [DoubtKind.OTHER_SESSION, DoubtKind.DECODE_MODE])
def test_a_reference_measured_otherwise_concerns_ratios_only(kind):
    replayed = record("throughput", doubts=(Doubt(kind, "before"),))
    assert doubt_about("decode_ratio_b8", replayed)
    assert not doubt_about("decode_tokens_per_s", replayed)


def test_a_run_of_schema_1_is_read():
    run = read_run(SCHEMA_1)
    records = run.records
    assert len(records) == 15

    mmlu = records["fp16", "mmlu"]
    assert [doubt.kind for doubt in mmlu.doubts] == [DoubtKind.CHANCE]
    assert mmlu.doubts[0].text.startswith("accuracy 0.542 ± 0.104 is at chance level")
    right = sum(map(str.isupper, mmlu.items.column("answer")))
    assert right / len(mmlu.items) == mmlu.metrics["accuracy"].value

    text = records["ewq-0.65", "perplexity"].items
    assert sum(text.column("tokens")) == records["ewq-0.65", "perplexity"].metrics["perplexity"].n
    diverged = records["ewq-0.65", "divergence"]
    mean = sum(diverged.items.column("kld")) / sum(diverged.items.column("tokens"))
    assert mean == pytest.approx(diverged.metrics["kld_mean"].value, abs=1e-8)

    speed = records["fp16", "throughput"]
    assert {doubt.kind for doubt in speed.doubts} == {DoubtKind.NOISE}
    assert not speed.notes
    assert speed.items.column("batch_size") == [1, 1, 1]
    assert len(records["fp16", "samples"].items.column("tokens")[0]) == 12
    assert not records["fp16", "memory"].items

    (reason,) = records["ewq-0.65", "mmlu_cloze"].reasons
    assert reason.text.startswith("accuracy_delta 0.000 ± 0.042")
    assert "at chance level" in reason.statistic


@pytest.mark.parametrize(
    ("task", "notes", "reasons", "kinds", "worse"),
    [
        ("throughput", ["throttled after"], ["against the baseline, x: 2 -> 1: worse, but [e]"],
         [DoubtKind.THROTTLING], True),
        ("throughput", ["noisy ratio: from before"], ["x is beyond max 1"],
         [DoubtKind.OTHER_SESSION], False),
        ("mmlu", ["the window was cut"], [], [], False),
    ],
)  # fmt: skip
def test_words_of_schema_1_become_values(task, notes, reasons, kinds, worse):
    old = {**record(task).to_json(), "schema": 1, "items": None}
    old |= {"notes": notes, "reasons": reasons, "verdict": "inconclusive"}
    read = Record.from_json(old)
    assert [doubt.kind for doubt in read.doubts] == kinds
    assert read.remarks == tuple(notes)
    assert lost_in_doubt(read) is worse
    assert [str(reason) for reason in read.reasons] == reasons


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 3},
        {"doubts": [{"kind": "mood", "text": ""}]},
        {"items": {"fields": ["a"], "rows": [[1, 2]]}},
        {"items": [1]},
        {"reasons": ["a sentence"]},
        {"schema": 1, "items": {"b1": {}}, "task": "throughput", "reasons": []},
        {"schema": 1, "items": 7, "reasons": []},
    ],
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(InputError):
        Record.from_json({**record().to_json(), **damage})
