import json

import pytest
import typer
from typer.testing import CliRunner

from ewq.cli.report import compare
from ewq.errors import InputError
from tests.make_runs import metric, record, stored_run

app = typer.Typer()
app.command()(compare)


def size(value):
    metrics = {"weights_bytes": metric(value, n=1, better=False, unit="bytes")}
    return record("memory", metrics=metrics)


@pytest.fixture
def storage(tmp_path):
    folder = tmp_path / ".benchmarks"
    for number, value in enumerate((1000, 1000, 1100), start=1):
        stored_run(folder, [size(value)], number=number, day=number, commit=str(number) * 40)
    return folder


@pytest.fixture
def run(storage):
    def invoke(*arguments):
        return CliRunner().invoke(app, [*arguments, "--storage", str(storage)])

    return invoke


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("1", "2"), 0),
        (("1", "3"), 1),
        (("1111111", "2222222"), 0),
        (("1",), 1),
        (("2", "0003"), 1),
        (("newest",), 1),
    ],
    ids=[
        "same",
        "regression",
        "by commit",
        "current defaults to the newest",
        "by number",
        "newest but not the run itself",
    ],
)
def test_exit_code(run, arguments, exit_code):
    assert run(*arguments).exit_code == exit_code


@pytest.mark.parametrize("number", ["1", "3"])
def test_a_run_did_not_change_from_itself(run, number):
    result = run(number, number)

    assert result.exit_code == 0
    assert result.stdout.startswith("### ewq: no change\n")
    assert "inconclusive" not in result.stdout


def test_json_is_one_document_and_nothing_else(run):
    document = json.loads(run("1", "3", "--format", "json").stdout)

    assert document["verdict"] == "fail"


def test_markdown_is_the_default_and_can_go_to_a_file(run, tmp_path):
    shown = run("1", "3")
    written = run("1", "3", "-o", str(tmp_path / "comment.md"))

    assert shown.stdout.startswith("### ewq: regression")
    assert written.stdout == ""
    assert written.exit_code == 1
    assert (tmp_path / "comment.md").read_text() == shown.stdout


def test_the_file_name_decides_the_format(run, tmp_path):
    run("1", "3", "-o", str(tmp_path / "c.json"))
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "fail"
    assert "name the file .md, .json, .html" in str(run("1", "3", "-o", "c.csv").exception)


def test_standard_output_is_utf_8_whatever_the_terminal(storage):
    runner = CliRunner(charset="ascii")
    result = runner.invoke(app, ["1", "3", "--storage", str(storage)], catch_exceptions=False)
    assert "→" in result.stdout_bytes.decode("utf-8")


def test_the_storage_may_be_the_uri_that_pytest_takes(storage):
    plain, uri = (
        CliRunner().invoke(app, ["1", "3", "--storage", text])
        for text in (str(storage), f"file://{storage}")
    )
    assert uri.stdout == plain.stdout
    assert uri.exit_code == plain.exit_code


def test_html(run):
    assert run("1", "3", "--format", "html").stdout.startswith("<!doctype html>")


def test_thresholds_decide(run, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text("[tolerance.memory]\nweights_bytes = {relative = 0.2}")

    assert run("1", "3", "--thresholds", str(path)).exit_code == 0


def test_an_unknown_run_is_an_input_error(run):
    result = run("nothing")

    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2


def test_the_projects_own_thresholds_apply_as_they_do_in_pytest(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    file = tmp_path / "benchmarks" / "thresholds.toml"
    file.write_text("[tolerance.memory]\nweights_bytes = { relative = 0.5 }\n")
    assert run("1", "3").exit_code == 0
    file.unlink()
    assert run("1", "3").exit_code == 1
