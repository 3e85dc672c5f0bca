import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ewq.gating.compare import compare_runs
from ewq.gating.comparison_formats import COMMENT_LIMIT, to_html, to_json, to_markdown
from ewq.gating.thresholds import Thresholds, Tolerance
from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.storage.runs import read_run
from tests.make_runs import GPU, THROTTLED, answers, metric, mmlu, record, stored_run


def speed(value, **changes):
    metrics = {"decode_tokens_per_s": metric(value, stderr=0.5, n=5, unit="tokens/s")}
    return record("throughput", metrics=metrics, **changes)


def size(value, **changes):
    metrics = {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}
    return record("memory", metrics=metrics, **changes)


@pytest.fixture
def compare(tmp_path):
    def run(before, after, thresholds=None, **after_session):
        runs = (
            read_run(stored_run(tmp_path, before, number=1, day=1)),
            read_run(stored_run(tmp_path, after, number=2, day=2, **after_session)),
        )
        return compare_runs(*runs, *([thresholds] if thresholds else []))

    return run


SPEED_AND_SIZE = [speed(100), size(1000)]
LOST = {"selected": [["ewq-0.65", "throughput"], ["ewq-0.65", "memory"]], "complete": False}

# before, after, keywords of the later run, exit code, verdict
CASES = {
    "the same": (SPEED_AND_SIZE, SPEED_AND_SIZE, {}, 0, Verdict.PASS),
    "slower": (SPEED_AND_SIZE, [speed(80), size(1000)], {}, 1, Verdict.FAIL),
    "bigger": (SPEED_AND_SIZE, [speed(100), size(1100)], {}, 1, Verdict.FAIL),
    "faster": (SPEED_AND_SIZE, [speed(120), size(1000)], {}, 0, Verdict.IMPROVED),
    "throttled": (
        SPEED_AND_SIZE,
        [speed(80, doubts=THROTTLED), size(1000)],
        {},
        0,
        Verdict.INCONCLUSIVE,
    ),
    "fewer answers right": (
        [mmlu(answers(140, 60))],
        [mmlu(answers(120, 80))],
        {},
        1,
        Verdict.FAIL,
    ),
    "another GPU": (
        SPEED_AND_SIZE,
        [speed(80), size(1100)],
        {"machine": GPU | {"gpu": "L4"}},
        2,
        Verdict.NO_BASELINE,
    ),
    "another model": (
        [size(1000)],
        [size(2000, fingerprint="sha256:2")],
        {},
        2,
        Verdict.NO_BASELINE,
    ),
    "other settings": (
        [size(1000)],
        [size(2000, settings={"shots": 0})],
        {},
        2,
        Verdict.NO_BASELINE,
    ),
    "nothing in common": ([size(1000)], [speed(100)], {}, 2, Verdict.NO_BASELINE),
    "a regression beside something not comparable": (
        SPEED_AND_SIZE,
        [speed(80), size(1000, settings={"shots": 0})],
        {},
        1,
        Verdict.FAIL,
    ),
    "a variant more than before": (
        SPEED_AND_SIZE,
        [*SPEED_AND_SIZE, size(1, variant="fp16")],
        {},
        0,
        Verdict.PASS,
    ),
    "a selection of what was measured before": (SPEED_AND_SIZE, [speed(100)], {}, 0, Verdict.PASS),
    "selected and lost": (SPEED_AND_SIZE, [speed(100)], {"session": LOST}, 1, Verdict.FAIL),
    "selected and lost, on another GPU": (
        SPEED_AND_SIZE,
        [speed(100)],
        {"session": LOST, "machine": GPU | {"gpu": "L4"}},
        2,
        Verdict.NO_BASELINE,
    ),
    "a gated metric is gone": (
        [size(1000)],
        [record("memory", metrics={"load_s": metric(1)})],
        {},
        1,
        Verdict.FAIL,
    ),
}


@pytest.mark.parametrize(
    ("before", "after", "changes", "exit_code", "verdict"), CASES.values(), ids=CASES.keys()
)
def test_exit_code_and_verdict(compare, before, after, changes, exit_code, verdict):
    comparison = compare(before, after, **changes)

    assert (comparison.exit_code, comparison.verdict) == (exit_code, verdict), to_markdown(
        comparison
    )


def test_tolerances_of_a_thresholds_file_apply(compare):
    wide = Thresholds("t", tolerances={"memory": {"weights_bytes": Tolerance(relative=0.5)}})

    assert compare([size(1000)], [size(1100)]).exit_code == 1
    assert compare([size(1000)], [size(1100)], wide).exit_code == 0


def test_every_metric_is_listed_with_delta_error_and_verdict(compare):
    text = to_markdown(compare(SPEED_AND_SIZE, [speed(80), size(1000)]))

    assert text.startswith("### ewq: regression (fail)\n")
    assert "0001 (aaaaaaaaaa) -> 0002 (aaaaaaaaaa)" in text
    slower = "| fail | ewq-0.65 | throughput | decode\\_tokens\\_per\\_s | 100 | 80 tokens/s |"
    assert f"{slower} -20 (-20.00%) | ± 0.71 |" in text
    assert (
        "| pass | ewq-0.65 | memory | weights\\_bytes | 1000 | 1000 bytes | +0 (+0.00%) |" in text
    )
    assert "tolerance 10.00%; unpaired error 0.707, one-sided p " in text
    assert ", detectable 1.98]" in text


@pytest.mark.parametrize(("freedom", "verdict"), [(None, Verdict.FAIL), (2, Verdict.INCONCLUSIVE)])
def test_a_change_that_rests_on_few_texts_needs_more_to_be_certain(compare, freedom, verdict):
    """1.8 errors of the difference: the normal's one-sided p is 0.036, that of t(2) 0.107."""

    def changed(value):
        figure = Metric(value, "nats", False, 900, 0.01, freedom)
        return record("divergence", metrics={"kld_p99": figure})

    limits = Thresholds("t", tolerances={"divergence": {"kld_p99": Tolerance(absolute=0.001)}})
    assert compare([changed(0.1)], [changed(0.1255)], limits).verdict is verdict


def test_driver_and_library_versions_that_differ_are_said(compare):
    comparison = compare(SPEED_AND_SIZE, SPEED_AND_SIZE, machine=GPU | {"driver": "590"})

    assert "- driver: 580.1 -&gt; 590".replace("&gt;", ">") in to_markdown(comparison)
    assert comparison.exit_code == 0


def test_json_has_everything_and_is_valid(compare):
    comparison = compare(SPEED_AND_SIZE, [speed(80)], session=LOST)
    document = json.loads(to_json(comparison), parse_constant=lambda name: pytest.fail(name))

    assert document["exit_code"] == 1
    assert document["verdict"] == "fail"
    assert document["losses"] == [
        "ewq-0.65/memory: selected, but this run has no result; the baseline has one"
    ]
    (row,) = document["rows"]
    assert row["metric"] == "decode_tokens_per_s"
    assert (row["before"], row["after"], row["delta"]) == (100, 80, -20)
    assert row["verdict"] == "fail"


@pytest.fixture
def huge(compare):
    """More metrics than fit a comment, the regression last of all."""
    names = [f"perplexity/domain-{number:04}-{'x' * 60}" for number in range(1200)]
    fine = {name: metric(10, stderr=1, better=False, unit="ratio") for name in names}
    after = [record("perplexity", metrics=fine, variant="ewq-0.5"), size(2000)]
    before = [record("perplexity", metrics=fine, variant="ewq-0.5"), size(1000)]
    return compare(before, after)


def test_a_comment_always_fits_and_keeps_what_matters(huge):
    text = to_markdown(huge)

    assert 50_000 < len(text.encode()) < COMMENT_LIMIT
    assert "| fail | ewq-0.65 | memory |" in text
    assert "rows of least importance left out" in text
    dropped = int(text.split(" rows of least importance")[0].split("\n")[-1])
    assert text.count("\n| shown |") == 1200 - dropped


@pytest.mark.parametrize("limit", [1500, 3000, 10_000])
def test_any_limit_is_kept(huge, limit):
    assert len(to_markdown(huge, limit).encode()) < limit


def test_a_comment_fits_where_twelve_variants_fail_at_everything(compare):
    tasks = ("perplexity", "throughput", "memory", "divergence")
    names = [f"variant_of_a_long_name_{number}_" + "é_" * 40 for number in range(12)]
    metrics = {"weights_bytes": 1000, "bits_per_weight": 1000}

    def run(factor, seed):
        figures = {
            name: metric(value * factor, n=1, better=False, unit="bytes")
            for name, value in metrics.items()
        }
        settings = {f"key_{number}_" + "_" * 60: seed for number in range(9)}
        return [
            record(task, name, figures, settings=settings if task == "divergence" else {})
            for task in tasks
            for name in names
        ]

    comparison = compare(run(1, 1), run(2, 2))
    text = to_markdown(comparison)

    assert len(comparison.regressions) == 24
    assert len(text.encode()) < COMMENT_LIMIT
    assert text.startswith("### ewq: regression (fail)")
    assert "**Changes**" in text


def test_a_comment_of_lists_alone_is_cut_at_a_line_and_says_so(huge):
    text = to_markdown(huge, 220)

    assert len(text.encode()) < 220
    assert text.endswith("The rest does not fit a comment; `--format json` or `html` has it all.\n")


def test_another_tokenizer_is_not_comparable(compare):
    comparison = compare([size(1000)], [size(2000)], session={"settings": {"tokenizer": "b"}})
    assert comparison.exit_code == 1  # a run that does not know its tokenizer

    both = compare_runs(replace(comparison.before, settings={"tokenizer": "a"}), comparison.after)
    assert both.exit_code == 2
    assert both.refusals == ("measured with another tokenizer",)


def test_names_cannot_break_the_table_or_call_anybody(compare):
    nasty = size(1000, variant="a|b`<script>@team\n")
    text = to_markdown(compare([nasty], [nasty]))

    row = next(line for line in text.splitlines() if line.startswith("| pass"))
    assert row.replace("\\|", "").count("|") == 9
    assert "<script>" not in text
    assert "@team" not in text


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.rows, self.loaded = [], 0, []

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_stands_alone_and_is_well_formed(compare):
    nasty = size(1000, variant='<script>"')
    page = to_html(compare([*SPEED_AND_SIZE, nasty], [speed(80), size(1000), nasty]))
    checker = Checker()
    checker.feed(page)

    assert checker.open == []
    assert checker.rows == 4
    assert checker.loaded == []
    assert "<script>" not in page
