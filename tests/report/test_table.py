import io
import re

import pytest
from rich.console import Console

from ewq.report.rows import variant_rows
from ewq.report.table import columns_for, footnotes, terminal_table
from ewq.storage.runs import read_run
from tests.make_runs import record
from tests.report.example_runs import VARIANTS, write_example


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    run = read_run(write_example(tmp_path_factory.mktemp("runs")))
    return variant_rows(run.records.values())


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
        (60, {"Variant", "Tok/s", "MMLU %", "Δ PPL %"}, {"Bits/w", "Verdict"}),
        (80, {"VRAM GB", "Bits/w", "Tok/s", "PPL"}, {"Verdict", "KLD mnat"}),
        (160, {"Δ points", "KLD mnat", "Verdict"}, set()),
    ],
)
def test_the_least_important_columns_go_first(rows, width, shown, left_out):
    text = drawn(rows, width)
    assert all(heading in text for heading in shown)
    assert not any(heading in text for heading in left_out)


def test_verdicts_are_coloured_on_terminals_only(rows):
    assert "\x1b[1;31mfail" in drawn(rows, 160, color=True)
    assert "\x1b" not in drawn(rows, 160)


def test_names_are_text_not_markup():
    (row,) = variant_rows([record("memory", "[/][red]x.gguf", {})])
    assert "[/][red]x.gguf" in drawn([row], 160)


def test_memory_is_named_by_what_was_measured(rows):
    assert "VRAM GB" in [column.heading for column in columns_for(rows)]
    assert footnotes(rows)[0].startswith("VRAM GB")
    (without,) = variant_rows([record("mmlu", "fp16")])
    assert "GB" in [column.heading for column in columns_for([without])]


def test_the_table_says_which_changes_it_could_not_have_shown(rows):
    (note,) = [note for note in footnotes(rows) if "gone unseen" in note]
    assert re.search(r"\): perplexity [\d.]+ %, MMLU [\d.]+ points\.$", note)
    assert not any("gone unseen" in note for note in footnotes(variant_rows([record("memory")])))
