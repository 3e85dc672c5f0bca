"""What all commands have in common: errors of one line, help with an example."""

from __future__ import annotations

import shlex

import pytest

from ewq.cli import EXAMPLES, PASSED_ON, Command, app, main

NAMES = [command.__name__ for command in EXAMPLES]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "m", "--foo"], "no such option: --foo"),
        (["plan"], "missing argument 'model'; see ewq plan --help"),
        (["fit", "m"], "missing option '-o' / '--output'; see ewq fit --help"),
        (["plan", "m", "--factor", "x"], "invalid value for '--factor'"),
        (["compare", "1", "--format", "pdf"], "'pdf' is not one of 'md', 'json', 'html'"),
        (["plan", "m", "--factor"], "option '--factor' requires an argument"),
        (["nonsense"], "no such command 'nonsense'; see ewq --help"),
        (["--nonsense"], "no such option: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_use_is_one_line_and_exit_code_2(ewq, arguments, said):
    result = ewq(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("ewq: ")
    assert said in result.err
    assert result.err.count("\n") == 1


def test_without_arguments_ewq_says_what_it_can_do(ewq):
    assert ewq().out == ewq("--help").out
    assert ewq().code == 0


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_and_no_types(ewq, name):
    said = ewq(name, "--help")
    assert said.code == 0
    assert f"Example: ewq {name}" in said.out
    for noise in ("<str>", "<path>", "<bool>", "TEXT ", "INTEGER", "[required]", "{"):
        assert noise not in said.out


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=NAMES)
def test_examples_are_calls_that_the_commands_take(example):
    import typer

    program, name, *arguments = shlex.split(example)
    assert program == "ewq"
    command = typer.main.get_command(app).commands[name]
    assert isinstance(command, Command)
    command.make_context(name, arguments)


def test_the_list_of_commands_fits_80_columns_without_dots(ewq):
    said = ewq("--help").out
    assert all(f"  {name} " in said for name in NAMES)
    assert "..." not in said
    assert max(map(len, said.splitlines())) < 80


def test_the_exit_code_of_a_command_is_that_of_the_program(monkeypatch):
    """``typer.Exit`` must come through, although typer does not end the process here."""
    monkeypatch.setattr("sys.argv", ["ewq", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert PASSED_ON["ignore_unknown_options"]
