import csv
import json

import pytest
import typer
from typer.testing import CliRunner

from ewq.cli.report import history
from ewq.errors import InputError
from tests.report.example_runs import write_example

app = typer.Typer()
app.command()(history)
FEW = ("fp16", "gguf-q8_0")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A working folder whose storage holds five runs, the last of them slow and worse."""
    monkeypatch.chdir(tmp_path)
    for day, drift in enumerate((0.001, 0.0, 0.002, 0.001, 0.3), 1):
        commit = f"{day}" * 40
        write_example(
            tmp_path / ".benchmarks", FEW, number=day, day=day, commit=commit, drift=drift
        )
    return tmp_path / ".benchmarks"


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_default_metrics_as_a_table_by_run_and_variant(storage):
    result = call()
    assert result.exit_code == 0
    assert "| fp16 | throughput decode\\_tokens\\_per\\_s | fail | 42 |" in result.stdout
    assert "| Run | Date | fp16 | gguf-q8\\_0 |" in result.stdout
    assert "| 0002 (2222222222) | 2026-01-02 | 60.00 ±0.60 | 92.00 ±0.92 |" in result.stdout


def test_the_gate_exits_1_and_says_which_figures(storage):
    result = call("decode_tokens_per_s", "--gate", "-o", "h.html")
    assert result.exit_code == 1
    assert result.stderr == (
        "ewq: 2 of 2 figures worse than expected: fp16 decode_tokens_per_s, "
        "gguf-q8_0 decode_tokens_per_s\n"
    )
    assert "expected" in (storage.parent / "h.html").read_text(encoding="utf-8")


def test_the_gate_exits_2_with_too_few_runs_and_0_as_expected(storage):
    newest = sorted(storage.glob("*/*.json"))
    newest.pop().unlink()
    assert call("--gate").exit_code == 0
    newest.pop().unlink()
    assert call("--gate").exit_code == 2


def test_csv_and_json_hold_every_value(storage):
    rows = list(csv.DictReader(call("weights_bytes", "--format", "csv").stdout.splitlines()))
    assert [row["commit"][0] for row in rows if row["variant"] == "fp16"] == list("12345")
    data = json.loads(call("decode_tokens_per_s", "--format", "json").stdout)
    assert data["exit_code"] == 1
    assert [line["variant"] for line in data["lines"]] == list(FEW)
    assert [each["value"] for each in data["values"]][4] == pytest.approx(42)
    assert len(data["values"]) == 10


def test_a_plot_has_a_line_a_variant_and_says_where_the_newest_is_expected(storage):
    from ewq.gating.trend import history_of
    from ewq.report.document import Plot
    from ewq.report.sections.history import history_page
    from ewq.storage.runs import read_storage

    page = history_page(history_of(read_storage(storage)[0], ["decode_tokens_per_s"]))
    (plot,) = (part for part in page.sections[0].parts if isinstance(part, Plot))
    line, *_ = plot.figure["lines"]
    assert line["y"][-1] == pytest.approx(42)
    assert len(line["x"]) == len(line["y"])
    assert line["expected"][0] > 42


def test_a_damaged_run_is_said_and_an_unknown_metric_refused(storage):
    (storage / "0009_x.json").write_text("{")
    assert "left out: run" in call("perplexity").stderr
    with pytest.raises(InputError, match="no metric 'speed'"):
        call("speed")
