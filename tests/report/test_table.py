import io

import pytest
from rich.console import Console

from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.report.rows import Estimate, variant_rows
from ewq.report.table import footnotes, terminal_table, variants_table, verdict_marks
from ewq.storage.runs import read_run
from ewq.variants import default_names, table_place
from tests.make_runs import CHANCE, NOISY, record
from tests.report.example_runs import VARIANTS, write_example


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    run = read_run(write_example(tmp_path_factory.mktemp("runs")))
    return variant_rows(run.records.values())


def columns(rows):
    """Heading -> cells."""
    table = variants_table(rows)
    return dict(zip(table.headings, map(list, zip(*table.rows, strict=True)), strict=True))


def drawn(rows, width, *, color=False):
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=color, no_color=not color)
    console.print(terminal_table(rows, width))
    return buffer.getvalue()


@pytest.mark.parametrize("width", [30, 60, 80, 100, 120, 160])
def test_figures_are_whole_at_every_width_and_every_variant_is_there(rows, width):
    text = drawn(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert all(name in text for name in VARIANTS)


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (60, {"Variant", "VRAM GB", "KLD", "Verdict"}, {"Bits/w", "Tok/s", "Δ PPL %"}),
        (80, {"VRAM GB", "Δ PPL %", "Tok/s", "KLD", "Verdict"}, {"Bits/w", "MMLU %"}),
        (100, {"MMLU %", "Δ points", "KLD", "Verdict"}, {"Bits/w"}),
        (160, {"Δ points", "Bits/w", "KLD", "Verdict"}, set()),
    ],
)
def test_the_least_important_columns_go_first(rows, width, shown, left_out):
    table, _, said = drawn(rows, width).partition("No room for:")
    assert all(heading in table for heading in shown)
    assert not any(heading in table for heading in left_out)
    assert all(heading in " ".join(said.split()) for heading in left_out)


def test_verdicts_are_coloured_on_terminals_only(rows):
    assert "\x1b[1;31m✗ PPL" in drawn(rows, 160, color=True)
    assert "\x1b" not in drawn(rows, 160)


def test_names_are_text_not_markup():
    (row,) = variant_rows([record("memory", "[/][red]x.gguf", {})])
    assert "[/][red]x.gguf" in drawn([row], 160)


def test_names_send_nothing_to_the_terminal():
    (row,) = variant_rows([record("memory", "\x1b]0;pwned\x07\x9b31m\nx.gguf", {})])
    text = drawn([row], 160)
    assert "pwned" in text
    assert not set(text) & set("\x1b\x07\x9b")


MEASURED_ORDER = (
    "other.gguf",
    "gguf-ewq-0.65",
    "bnb-nf4",
    "ewq-0.5",
    "fp16",
    "ewq-1.0",
    "gguf-f16",
)


def test_variants_stand_in_the_order_of_tables_whatever_order_they_were_measured_in():
    rows = variant_rows([record("memory", name, {}) for name in MEASURED_ORDER])
    assert [row.variant for row in rows] == [
        "fp16", "ewq-1.0", "ewq-0.5", "bnb-nf4", "gguf-f16", "gguf-ewq-0.65", "other.gguf",
    ]  # fmt: skip


def test_the_default_variants_are_in_the_order_of_tables():
    names = default_names(["1.0", "0.65"])
    assert sorted(names, key=table_place) == list(names)


def sized(*sizes_bytes):
    metrics = [{"weights_bytes": Metric(size, "bytes", False, 1)} for size in sizes_bytes]
    return variant_rows([record("memory", f"ewq-0.{n}", m) for n, m in enumerate(metrics)])


@pytest.mark.parametrize(
    ("sizes_bytes", "shown"),
    [
        ((16.4e9, 4.1e9), ["4.10", "16.4"]),
        ((0.269e9, 0.0968e9), ["0.0968", "0.269"]),
        ((1.71e6, 0.69e6), ["0.000690", "0.00171"]),
    ],
)
def test_sizes_have_three_digits(sizes_bytes, shown):
    assert columns(sized(*sizes_bytes))["GB"] == shown


def test_speeds_of_doubtful_clocks_are_marked_and_explained():
    speed = {"decode_tokens_per_s": Metric(61.0, "tokens/s", True, 10, 0.5)}
    rough, sure = (
        variant_rows([record("throughput", "fp16", speed, doubts=doubts)]) for doubts in (NOISY, ())
    )
    assert [columns(each)["Tok/s"] for each in (rough, sure)] == [["~61.0 ±0.5"], ["61.0 ±0.5"]]
    assert [note for note in footnotes(rough) if note.startswith("~")]
    assert not [note for note in footnotes(sure) if note.startswith("~")]


@pytest.mark.parametrize(("value", "text"), [(-0.001, "+0.00"), (0.0, "+0.00"), (-0.01, "-0.01")])
def test_nothing_is_minus_zero(value, text):
    assert Estimate(value).text(2, signed=True) == text


def test_memory_is_named_by_what_was_measured(rows):
    assert "VRAM GB" in columns(rows)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.05886, 0.00989, "0.0589 ±0.0099"),
        (0.28025, 0.03796, "0.280 ±0.038"),
        (0.00446, 0.00058, "0.00446 ±0.00058"),
        (0.0, 0.0, "0.00 ±0.00"),
        (0.123456, None, "0.123"),
        (12.0, 3.0, "12.0 ±3.0"),
    ],
)
def test_an_error_decides_how_many_digits_are_shown(value, stderr, text):
    assert Estimate(value, stderr).text() == text


def judged(**verdicts):
    records = [record(task, "ewq-0.5", verdict=verdict) for task, verdict in verdicts.items()]
    return variant_rows(records)


def test_each_gated_task_has_its_mark_the_gravest_first():
    rows = judged(
        mmlu=Verdict.INCONCLUSIVE,
        memory=Verdict.NO_BASELINE,
        perplexity=Verdict.PASS,
        divergence=Verdict.FAIL,
        mmlu_cloze=Verdict.PASS,
    )
    assert verdict_marks(rows[0]) == "✗ KLD ? MMLU ✓ PPL cloze"
    assert verdict_marks(rows[0], brief=True) == "✗ KLD ? MMLU ✓ 2"


def test_without_a_gate_there_is_no_verdict_and_where_no_row_has_one_no_column():
    ungated = judged(mmlu=Verdict.NO_BASELINE)
    assert verdict_marks(ungated[0]) == ""
    assert "Verdict" not in columns(ungated)
    assert not any("passed" in note for note in footnotes(ungated))


def test_the_cloze_form_is_shown_where_the_letters_are_guessed():
    metrics = {"accuracy": Metric(0.25, "fraction", True, 100, 0.05)}
    letters = record("mmlu", "fp16", metrics, doubts=CHANCE)
    cloze = record("mmlu_cloze", "fp16", metrics)
    (alone,), (both,) = variant_rows([letters]), variant_rows([letters, cloze])
    assert columns([alone]) == {
        "Variant": ["fp16"],
        "MMLU %": ["25.0 ±5.0*"],
        "Verdict": ["✓ MMLU"],
    }
    assert columns([both])["MMLU cloze %"] == ["25.0 ±5.0"]
    assert "MMLU %" not in columns([both])
    useful = variant_rows([record("mmlu", "fp16", metrics), cloze])
    assert "MMLU %" in columns(useful)
    assert any(note.startswith("*") for note in footnotes([alone]))
    assert not any(note.startswith("*") for note in footnotes([both]))


def test_columns_of_which_nothing_was_measured_are_left_out():
    rows = variant_rows([record("mmlu", "fp16")])
    assert list(columns(rows)) == ["Variant", "MMLU %", "Verdict"]


def test_a_folders_method_stands_beside_its_bits():
    bits = {"bits_per_weight": Metric(4.5678, "bits", False, 1)}
    folder = record("memory", "hf-some-awq", bits, settings={"method": "awq 4-bit"})
    shown = variant_rows([folder, record("memory", "bnb-nf4", bits)])
    assert columns(shown)["Bits/w"] == ["4.57", "4.57 (awq 4-bit)"]
