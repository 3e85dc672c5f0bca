"""Figures inside the sections, on items small enough to count by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ewq.measurement import Metric
from ewq.record import Reason, Verdict
from ewq.report.document import Bullets, Excerpts, Paragraph, Plot, Table
from ewq.report.rows import ReportedRun, reported_run
from ewq.report.sections.against_size import speed
from ewq.report.sections.breakdown import domains, flips, lm_eval, samples
from ewq.report.sections.plans import blocks
from ewq.report.sections.run import overview, protocol, verdicts
from ewq.report.table import variants_table
from ewq.storage.runs import Run, read_run
from tests.make_runs import CHANCE, NOISY, record
from tests.report.example_runs import write_example


def shown(*records) -> ReportedRun:
    by_key = {each.key: each for each in records}
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return reported_run([Run(Path("0001.json"), None, False, None, moment, {}, by_key, True)])


def only(section, kind):
    (found,) = (part for part in section.parts if isinstance(part, kind))
    return found


def test_flips_are_counted_by_direction():
    figures = {
        "accuracy_delta": Metric(-0.02, "fraction", True, 100, 0.02),
        "flips": Metric(0.04, "fraction", False, 100, 0.02),
        "mcnemar_p": Metric(0.625, "p", None, 100),
    }
    run = shown(record("mmlu", "fp16", {}), record("mmlu", "bnb-nf4", figures))
    assert only(flips(run), Table).rows == (("bnb-nf4", "MMLU, 100", "3", "1", "0.625"),)
    assert flips(shown(record("mmlu", "fp16", {}))) is None


def asked_by_lm_eval(variant, **changes):
    figures = {"acc": Metric(0.56, "fraction", True, 100, 0.05), **changes}
    return record("lm_eval-arc_easy", variant, metrics=figures)


def test_tasks_of_lm_eval_show_each_metric_with_its_change():
    change = Metric(-0.04, "fraction", True, 100, 0.03, 99)
    pair = {"delta/acc": change, "flips/acc": Metric(0.1, "fraction", False, 100, 0.03)}
    run = shown(asked_by_lm_eval("fp16"), asked_by_lm_eval("bnb-nf4", **pair))
    assert only(lm_eval(run), Table).rows == (
        ("arc_easy", "acc", "0.560 ±0.050", "0.560 ±0.050 (~-0.040 ±0.030)"),
    )
    assert lm_eval(shown(record("perplexity", "fp16", {}))) is None
    table = variants_table(run.rows)
    assert table.headings == ("Variant", "arc_easy acc", "Verdict")


@pytest.mark.parametrize(("freedom", "doubt"), [(None, ""), (5, ""), (2, "~")])
def test_a_change_on_few_texts_needs_more_to_be_told_from_none(freedom, doubt):
    """Three errors from zero: t(2) asks for 4.3 of them, t(5) for 2.6."""
    change = Metric(0.03, "nats", False, 900, 0.01, freedom)
    metrics = {"ln_ppl_ratio/code": change}
    table = only(domains(shown(record("perplexity", "bnb-nf4", metrics))), Table)
    assert table.rows == (("bnb-nf4", f"{doubt}+3.05 ±1.03"),)


def test_groups_of_subjects_are_a_table_unless_all_is_guessing():
    accuracy = {"accuracy/stem": Metric(0.512, "fraction", True, 80, 0.056)}
    told, fallen, guessed = (
        record("mmlu_cloze", "fp16", accuracy),
        replace(record("mmlu_cloze", "bnb-nf4", accuracy), doubts=CHANCE),
        replace(record("mmlu", "fp16", accuracy), doubts=CHANCE),
    )
    table = only(domains(shown(told, fallen, guessed)), Table)
    assert table.title.startswith("MMLU (cloze) by group")
    assert table.headings == ("Variant", "stem")
    assert table.rows == (("fp16", "51.2 ±5.6"), ("bnb-nf4*", "51.2 ±5.6"))


def wrote(variant, text):
    return record(
        "samples", variant, {}, side={"samples": [{"name": "n", "prompt": "p", "text": text}]}
    )


def test_samples_differ_from_the_first_difference_on():
    runs = shown(wrote("fp16", "one two"), wrote("a.gguf", "one too"), wrote("b.gguf", "one two"))
    assert only(samples(runs), Excerpts).texts == {
        "fp16": ("one two", ""),
        "a.gguf": ("one t", "oo"),
        "b.gguf": ("one two", ""),
    }


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.02, 0.005, "+2.02 ±0.51"),
        (0.02, 0.02, "~+2.02 ±2.04"),
        (0.02, None, "~+2.02"),
        (-0.02, 0.005, "-1.98 ±0.49"),
    ],
)
def test_domain_changes_that_cannot_be_told_from_none_are_marked(value, stderr, text):
    metrics = {"ln_ppl_ratio/code": Metric(value, "nats", False, 9, stderr)}
    section = domains(shown(record("perplexity", "ewq-0.5", metrics)))
    assert only(section, Table).rows == (("ewq-0.5", text),)


def test_blocks_tell_thresholds_once_and_a_column_for_each_plan(tmp_path):
    run = read_run(write_example(tmp_path, ("ewq-1.0", "ewq-0.5", "gguf-ewq-0.5"), ("memory",)))
    plot = only(blocks(reported_run([run])), Plot)
    assert len(plot.figure["thresholds"]) == 2
    assert "Dashed, from above: 4 bits begin for ewq-0.5, ewq-1.0." in plot.caption
    assert plot.table.headings[2:] == ("ewq-1.0", "ewq-0.5", "gguf-ewq-0.5")
    assert len(plot.table.rows) == 30
    assert "gguf-ewq-0.5: raw 16, 4bit 8, 8bit 6." in plot.caption


def test_types_of_fitted_plans_stand_with_the_expected_and_the_measured_divergence():
    plan = {"blocks": [], "types": {"Q5_K": 7, "Q8_0": 2}, "expected_kld": 0.01234}
    figures = {"kld_mean": Metric(0.0131, "nats", False, 900, 0.0004)}
    section = blocks(
        shown(
            record("memory", "gguf-ewq-fit", {}, side={"plan": plan}),
            record("divergence", "gguf-ewq-fit", figures),
        )
    )
    (table,) = section.parts
    assert table.rows == (("gguf-ewq-fit", "7 Q5_K, 2 Q8_0", "0.0123", "0.01310 ±0.00040"),)


@pytest.mark.parametrize(
    ("scorer", "heading"), [("histogram", "Entropy"), ("softmax", "Entropy"), ("kurtosis", "Score")]
)
def test_only_entropies_are_called_so(tmp_path, scorer, heading):
    def scored(each):
        plan = {**each.side["plan"], "scorer": scorer} if "plan" in each.side else None
        return replace(each, side={**each.side, "plan": plan} if plan else each.side)

    run = read_run(write_example(tmp_path, ("ewq-1.0",), ("memory",), change=scored))
    section = blocks(reported_run([run]))
    plot = only(section, Plot)
    assert plot.title == f"{heading} by block ({scorer})"
    assert plot.table.headings[1] == heading


def judged(variant, verdict, task="mmlu", **changes):
    return record(
        task,
        variant,
        verdict=verdict,
        reasons=(Reason(verdict, f"because {variant}", "p 0.04"),),
        **changes,
    )


def test_failures_are_told_each_and_inconclusive_records_once_a_task_with_reasons_folded():
    section = verdicts(
        shown(
            judged("ewq-0.5", Verdict.FAIL),
            judged("bnb-nf4", Verdict.INCONCLUSIVE, notes=("few questions",)),
            judged("ewq-1.0", Verdict.INCONCLUSIVE, notes=("few questions",)),
        )
    )
    failed, open_ones = only(section, Bullets).points
    assert (failed.text, failed.bad) == ("ewq-0.5, mmlu: because ewq-0.5", True)
    assert (open_ones.text, open_ones.open_question) == (
        "mmlu: too few items to decide: ewq-1.0, bnb-nf4",
        True,
    )
    reasons, remarks = (part for part in section.parts if isinstance(part, Table))
    assert reasons.folded
    assert [row[2] for row in reasons.rows] == [
        "because ewq-0.5 [p 0.04]",
        "because ewq-1.0 [p 0.04]",
        "because bnb-nf4 [p 0.04]",
    ]
    assert remarks.rows == (("mmlu", "ewq-1.0, bnb-nf4", "few questions"),)


def test_remarks_on_the_weights_stand_under_the_table_once():
    remark = ("2 of 8 tensors are stored as F16: their rows do not divide by 256",)
    size = {"weights_bytes": Metric(9.0, "bytes", False, 1)}
    section = overview(
        shown(
            record("memory", "gguf-q4_k_m", size, notes=remark),
            record("memory", "gguf-ewq-0.65", size, notes=remark),
            record("throughput", "fp16", notes=("something else",)),
        )
    )
    (point,) = section.parts[-1].points
    assert (point.lead, point.text) == ("gguf-q4_k_m, gguf-ewq-0.65", remark[0])


def test_inconclusive_records_are_grouped_by_their_cause():
    reason = Reason(Verdict.INCONCLUSIVE, "so", metric="accuracy_delta")
    guessed, few = {"doubts": CHANCE, "reasons": (reason,)}, {"reasons": (reason,)}
    section = verdicts(
        shown(
            *(
                record("mmlu", variant, verdict=Verdict.INCONCLUSIVE, **why)
                for variant, why in (("fp16", guessed), ("bnb-int8", few), ("bnb-nf4", guessed))
            )
        )
    )
    assert [point.text for point in only(section, Bullets).points] == [
        "mmlu: no better than guessing: fp16, bnb-nf4",
        "mmlu: too few items to decide: bnb-int8",
    ]


def test_each_value_of_a_setting_stands_once_with_its_tasks_and_variants():
    questions = {"device": "cuda:0", "subjects": [["anatomy", 3], ["law", 2]]}
    section = protocol(
        shown(
            record("mmlu", "fp16", settings=questions | {"batch": 8}),
            record("mmlu", "bnb-nf4", settings=questions | {"batch": 4}),
            record("perplexity", "fp16", {}, settings={"device": "cuda:0", "batch": 8}),
        )
    )
    (table,) = (part for part in section.parts if part.headings[-1] == "Variants")
    assert table.rows == (
        ("batch", "4", "mmlu", "bnb-nf4"),
        ("batch", "8", "mmlu, perplexity", "fp16"),
        ("device", "cuda:0", "all", "all"),
        ("subjects", "2 subjects, 5 questions", "mmlu", "all"),
    )


def test_doubtful_clocks_are_told_in_one_warning():
    rate = {"decode_tokens_per_s": Metric(50.0, "tokens/s", True, 9, 1.0)}
    noisy = {"metrics": rate, "doubts": NOISY}
    section = speed(
        shown(record("throughput", "fp16", **noisy), record("throughput", "ewq-0.5", **noisy))
    )
    warning = only(section, Paragraph)
    assert warning.warning
    assert "Unreliable speeds (~): fp16, ewq-0.5." in warning.text


def test_agreement_is_shown_by_the_confidence_of_the_reference():
    metrics = {
        "kld_p999": Metric(0.512, "nats", False, 1000, 0.064),
        "top1_agreement/below_50": Metric(0.75, "fraction", True, 400, 0.02),
        "top1_agreement/from_90": Metric(0.998, "fraction", True, 300, 0.003),
    }
    names = ("divergence", "divergence_at-4096", "divergence_at-chat")
    told = (record(name, "bnb-nf4", metrics) for name in names)
    table = only(domains(shown(*told)), Table)
    assert table.headings == ("Variant", "On", "KLD", "p99", "p99.9", "below 50 %", "from 90 %")
    figures = ("–", "–", "0.512 ±0.064", "75.0 ±2.0", "99.8 ±0.3")
    assert table.rows == tuple(
        ("bnb-nf4", where, *figures) for where in ("texts", "depth 4096", "own answers")
    )
    assert domains(shown(record("divergence", "bnb-nf4", {}))) is None
