import json
import re
from pathlib import Path

import pytest
import typer
import yaml
from huggingface_hub.repocard_data import ModelCardData
from typer.testing import CliRunner

from ewq.cli.report import report
from ewq.errors import InputError
from tests.make_runs import stored_run
from tests.report.example_runs import write_example

FEW = ("fp16", "ewq-0.65")

app = typer.Typer()
app.command()(report)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A working folder whose storage holds two runs."""
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path / ".benchmarks", FEW, number=1, day=1, commit="1" * 40)
    write_example(tmp_path / ".benchmarks", FEW, number=2, day=2, commit="2" * 40)
    return tmp_path / ".benchmarks"


def call(*arguments, charset="utf-8"):
    runner = CliRunner(charset=charset)
    return runner.invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_without_arguments_the_newest_run_becomes_a_page(storage):
    result = call()
    assert result.stdout == ""
    assert "wrote ewq-report.html (4.9 MB)" in result.stderr
    text = (storage.parent / "ewq-report.html").read_text(encoding="utf-8")
    assert "0002 (2222222222)" in text
    assert "History" not in text.split("<main>")[0].split("</style>")[1]


def test_json_is_alone_on_standard_output(storage):
    result = call("--format", "json")
    assert json.loads(result.stdout)["runs"][0]["name"] == "0002 (2222222222)"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("r.md", "# HuggingFaceTB"),
        ("r.json", "{"),
        ("r.html", "<!doctype html>"),
        ("r.CSV", "variant,task,metric,value"),
    ],
)
def test_the_file_name_decides_the_format(storage, name, begins):
    call("-o", name)
    assert (storage.parent / name).read_text(encoding="utf-8").startswith(begins)


def test_a_stated_format_wins_over_the_file_name(storage):
    call("--format", "json", "-o", "odd.html")
    json.loads((storage.parent / "odd.html").read_text())


@pytest.mark.parametrize("name", ["r.txt", "r", "r.csv.gz"])
def test_a_file_whose_name_asks_for_no_format_is_refused_and_not_written(storage, name):
    with pytest.raises(InputError, match=r"name the file \.html, \.md, \.json, \.csv, or give"):
        call("-o", name)
    assert not (storage.parent / name).exists()


@pytest.mark.parametrize("format_", ["html", "md"])
def test_standard_output_is_utf_8_whatever_the_terminal(storage, format_):
    written = call("--format", format_, "-o", "-", charset="ascii").stdout_bytes
    assert "±" in written.decode("utf-8")


def test_a_device_is_written_to_and_not_replaced(storage):
    call("-o", "/dev/null", "--format", "md")
    assert Path("/dev/null").is_char_device()


def test_dash_writes_the_page_to_standard_output(storage):
    assert call("-o", "-").stdout.startswith("<!doctype html>")


def test_runs_by_number_commit_and_twice_are_a_history_oldest_first(storage):
    data = json.loads(call("2", "1" * 40, "2", "--format", "json").stdout)
    names = [run["name"] for run in data["runs"]]
    assert names == ["0001 (1111111111)", "0002 (2222222222)"]


def test_unknown_run_is_bad_input(storage):
    with pytest.raises(InputError, match="no stored run 'nonsense'"):
        call("nonsense")


def test_empty_storage_says_how_to_fill_it(tmp_path):
    with pytest.raises(InputError, match="run `pytest benchmarks/` first"):
        call("--storage", tmp_path)


def test_run_without_records_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        call(stored_run(tmp_path, []))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("file/report.html", "cannot write"),
        (f"{'x' * 300}.html", "File name too long"),
        ("folder.html", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(storage, name, why):
    (storage.parent / "file").write_text("")
    (storage.parent / "folder.html").mkdir()
    with pytest.raises(InputError, match=why):
        call("no such run", "-o", name)


def test_exports_for_github_action_benchmark_hold_one_direction_each(storage):
    files = {
        way: json.loads(call("--format", f"github-{way}").stdout) for way in ("smaller", "bigger")
    }
    names = {way: {entry["name"] for entry in entries} for way, entries in files.items()}
    (speed,) = (e for e in files["bigger"] if e["name"] == "fp16 throughput decode_tokens_per_s")

    assert {"fp16 memory weights_bytes", "ewq-0.65 divergence kld_mean"} <= names["smaller"]
    assert not names["smaller"] & names["bigger"]
    assert "fp16 memory load_s" not in names["smaller"], "no baseline gates it"
    assert speed | {"value": 60.0, "unit": "tokens/s", "extra": "n 10"} == speed
    # The action reads a number of two characters at least behind the sign.
    assert re.fullmatch(r"± \d.+", speed["range"])
    assert float(speed["range"][2:]) == pytest.approx(1.96 * 0.6, rel=1e-3)


def test_the_export_for_bencher_is_its_metric_format(storage):
    found = json.loads(
        call("--format", "bencher", "-o", "b.json").stdout or Path("b.json").read_text()
    )
    kld = found["ewq-0.65 divergence"]["kld_mean"]

    assert kld["lower_value"] < kld["value"] < kld["upper_value"]
    assert found["fp16 memory"]["weights_bytes"] == {"value": 269_000_000.0}
    assert all(len(measure) <= 64 for measures in found.values() for measure in measures)


def test_a_model_card_takes_the_quality_of_each_variant(storage):
    text = call("--format", "model-index").stdout
    card = ModelCardData(**yaml.safe_load(text), ignore_metadata_errors=False)
    found = {(each.dataset_name, each.metric_type): each for each in card.eval_results}

    index = yaml.safe_load(text)["model-index"]
    assert [each["name"] for each in index][:2] == [
        "HuggingFaceTB/SmolLM2-135M fp16",
        "HuggingFaceTB/SmolLM2-135M ewq-0.65",
    ]
    kld = found["divergence", "kld_mean"]
    assert kld.metric_value > 0
    assert kld.metric_args["n"] > 1
    assert ("throughput", "decode_tokens_per_s") not in found
