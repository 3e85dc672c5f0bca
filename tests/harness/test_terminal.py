"""Where the line of progress goes while pytest captures what tests write."""

import contextlib
import io
from types import SimpleNamespace

import pytest

from ewq.harness.terminal import find_progress
from ewq.progress import NO_PROGRESS, LogProgress


@pytest.fixture
def terminal():
    file, lines = io.StringIO(), []
    writer = SimpleNamespace(_file=file, fullwidth=40, width_of_current_line=20, lines=lines)

    def line():
        lines.append("")
        writer.width_of_current_line = 0

    writer.line = line
    return writer


def config_of(terminal, isatty):
    plugins = {
        "terminalreporter": SimpleNamespace(_tw=terminal, isatty=isatty),
        "capturemanager": SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext),
    }
    return SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=plugins.get))


def test_it_is_drawn_below_what_pytest_wrote(terminal):
    progress = find_progress(config_of(terminal, isatty=True))
    progress.start("perplexity", 100, "tokens")
    assert len(terminal.lines) == 1
    assert terminal._file.getvalue().strip().startswith("perplexity:")


def test_a_pipe_gets_none_and_a_ci_job_a_line_a_minute(terminal, monkeypatch):
    monkeypatch.setenv("CI", "true")
    progress = find_progress(config_of(terminal, isatty=False))
    assert isinstance(progress, LogProgress)
    progress.start("perplexity", 100, "tokens")
    assert terminal._file.getvalue() == ""
    monkeypatch.delenv("CI")
    assert find_progress(config_of(terminal, isatty=False)) is NO_PROGRESS
