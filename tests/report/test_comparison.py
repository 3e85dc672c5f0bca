"""What a comparison of two runs is shown as: a short comment, and everything as HTML and JSON."""

import json
from html.parser import HTMLParser

import pytest

from ewq.gating.compare import compare_runs
from ewq.measurement import Items
from ewq.record import Verdict
from ewq.report.comparison import COMMENT_LIMIT, FORMATS, headline, to_comment
from ewq.storage.runs import read_run
from tests.make_runs import GPU, NOISY, answers, metric, mmlu, record, stored_run
from tests.report.example_runs import write_example


def speed(value, **changes):
    metrics = {"decode_tokens_per_s": metric(value, stderr=0.5, n=5, unit="tokens/s")}
    return record("throughput", metrics=metrics, **changes)


def size(value, **changes):
    metrics = {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}
    return record("memory", metrics=metrics, **changes)


@pytest.fixture
def compare(tmp_path):
    def run(before, after, **after_session):
        return compare_runs(
            read_run(stored_run(tmp_path, before, number=1, day=1)),
            read_run(stored_run(tmp_path, after, number=2, day=2, **after_session)),
        )

    return run


SPEED_AND_SIZE = [speed(100), size(1000)]
LOST = {"selected": [["ewq-0.65", "throughput"], ["ewq-0.65", "memory"]], "complete": False}


def test_a_change_stands_once_with_both_values_its_error_and_verdict(compare):
    text = to_comment(compare(SPEED_AND_SIZE, [speed(80), size(1000)]))

    assert text.startswith("### ewq: regression: 1 metric worse\n")
    assert "0001 (aaaaaaaaaa) → 0002 (aaaaaaaaaa)" in text
    slower = "| ewq-0.65 | throughput decode\\_tokens\\_per\\_s | fail | 100 | 80 tokens/s |"
    assert f"{slower} -20 (-20.00%) | 0.71 |" in text
    assert "1 metric unchanged." in text
    assert text.count("decode") == 1


def test_the_plan_and_versions_that_differ_are_named_as_possible_causes(compare):
    other = compare(
        [size(1000, plan="sha256:a"), speed(100)],
        [size(1100, plan="sha256:b"), speed(80)],
        machine=GPU | {"driver": "590"},
    )
    bigger, slower = (
        line for line in to_comment(other).splitlines() if line.startswith("| ewq-0.65")
    )
    assert bigger.endswith("| another plan, other versions |")
    assert slower.endswith("| other versions |")
    assert "- driver: 580.1 -&gt; 590" in to_comment(other)


def noisy(records):
    return [speed(value, doubts=NOISY) for value in records]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        pytest.param(SPEED_AND_SIZE, SPEED_AND_SIZE, "no change", id="the same"),
        pytest.param([mmlu("AAbb")], [mmlu("AAbb")], "no change", id="equal answers"),
        pytest.param(
            [mmlu("AAbb"), speed(100, items=Items({"batch_size": [1], "decode_s": [1.0]}))],
            [mmlu("AAbb"), speed(99.9, items=Items({"batch_size": [1], "decode_s": [1.1]}))],
            "no change",
            id="equal answers, clocks that vary within tolerance",
        ),
        pytest.param(
            [mmlu("A" * 199 + "b")], [mmlu("A" * 198 + "bb")],
            "no regression: 1 metric inconclusive", id="one changed answer",
        ),
        pytest.param(
            [speed(100, doubts=NOISY)], [speed(99, doubts=NOISY)], "no change",
            id="within tolerance, in doubt",
        ),
        pytest.param(
            [mmlu("Ab" + "A" * 198)], [mmlu("bA" + "A" * 198)], "no regression",
            id="two answers that changed places",
        ),
        pytest.param([speed(100)], [speed(150)], "no regression: 1 metric better", id="faster"),
        pytest.param(
            [speed(100)], noisy([80]), "no change: 1 metric inconclusive", id="slower, in doubt"
        ),
        pytest.param(
            [mmlu(answers(140, 60)), speed(100)], [mmlu(answers(100, 100)), speed(70)],
            "regression: 2 metrics worse", id="worse in two ways",
        ),
        pytest.param([size(1)], [size(1, fingerprint="sha256:2")], "not comparable", id="models"),
    ],
)  # fmt: skip
def test_headline(compare, before, after, words):
    assert headline(compare(before, after)) == words


def test_what_is_within_tolerance_stands_behind_a_title(compare):
    text = to_comment(compare([speed(100)], [speed(99)]))
    assert "<details><summary>1 metric changed within tolerance, or not gated</summary>" in text
    assert "| throughput decode\\_tokens\\_per\\_s | 99 (-1.00%) |" in text


def test_a_comment_on_five_variants_whose_every_metric_moved_is_short(tmp_path):
    names = ("fp16", "ewq-1.0", "ewq-0.8", "ewq-0.65", "ewq-0.5")
    before, after = (
        read_run(write_example(tmp_path, names, number=n, day=n, drift=0.02 * n)) for n in (1, 2)
    )
    text = to_comment(compare_runs(before, after))
    assert headline(compare_runs(before, after)).startswith("regression")
    assert len(text.encode()) < 10_000


def test_json_has_everything_and_is_valid(compare):
    comparison = compare(SPEED_AND_SIZE, [speed(80)], session=LOST)
    text = FORMATS["json"](comparison)
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))

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

    def records(value, weight):
        names = [f"perplexity/domain-{number:04}-{'x' * 60}" for number in range(1200)]
        figures = {name: metric(value, stderr=1, better=False, unit="ratio") for name in names}
        return [record("perplexity", metrics=figures, variant="ewq-0.5"), size(weight)]

    return compare(records(10, 1000), records(10.1, 2000))


def test_a_comment_always_fits_and_keeps_what_matters(huge):
    text = to_comment(huge)

    assert 40_000 < len(text.encode()) < COMMENT_LIMIT
    assert "| ewq-0.65 | memory weights\\_bytes | fail |" in text
    assert 0 < text.count("\n| perplexity/domain") < 1200
    assert text.endswith("The rest does not fit a comment; `--format json` or `html` has it all.\n")


@pytest.mark.parametrize("limit", [1500, 3000, 10_000])
def test_any_limit_is_kept(huge, limit):
    assert len(to_comment(huge, limit).encode()) < limit


def test_a_comment_fits_where_twelve_variants_fail_at_everything(compare):
    tasks = ("perplexity", "throughput", "memory", "divergence")
    names = [f"variant_of_a_long_name_{number}_" + "é_" * 40 for number in range(12)]

    def run(factor, seed):
        figures = {
            name: metric(1000 * factor, n=1, better=False, unit="bytes")
            for name in ("weights_bytes", "bits_per_weight")
        }
        settings = {f"key_{number}_" + "_" * 60: seed for number in range(9)}
        return [
            record(task, name, figures, settings=settings if task == "divergence" else {})
            for task in tasks
            for name in names
        ]

    comparison = compare(run(1, 1), run(2, 2))
    text = to_comment(comparison)

    assert [row.verdict for row in comparison.rows].count(Verdict.FAIL) == 24
    assert len(text.encode()) < COMMENT_LIMIT
    assert text.startswith("### ewq: regression: 24 metrics worse")
    assert text.count("| fail |") == 24
    assert text.rindex("| fail |") < text.index("- **not comparable:**")


def test_a_comment_of_lists_alone_is_cut_at_a_line_and_says_so(huge):
    text = to_comment(huge, 170)

    assert len(text.encode()) < 170
    assert text.endswith("The rest does not fit a comment; `--format json` or `html` has it all.\n")


def test_names_cannot_break_the_table_or_call_anybody(compare):
    nasty = "a|b`<script>@team\n"
    text = to_comment(compare([size(1000, variant=nasty)], [size(2000, variant=nasty)]))

    row = next(line for line in text.splitlines() if "| fail |" in line)
    assert row.replace("\\|", "").count("|") == 9
    assert "<script>" not in text
    assert "@team" not in text


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.rows, self.loaded = [], 0, []

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.loaded += [value for name, value in attrs if name == "src"]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_stands_alone_and_has_every_metric_with_its_statistics(compare):
    nasty = size(1000, variant='<script>"')
    page = FORMATS["html"](compare([*SPEED_AND_SIZE, nasty], [speed(80), size(1000), nasty]))
    checker = Checker()
    checker.feed(page)

    assert checker.open == []
    assert checker.rows == 2 + 4  # the change, and all metrics with their statistics
    assert checker.loaded == []
    assert "<script>" not in page
    assert "tolerance 10.00%; unpaired error 0.707, one-sided p " in page
    assert ", detectable 1.98]" in page
