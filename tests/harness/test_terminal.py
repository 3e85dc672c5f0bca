"""Where the line of progress goes while pytest captures what tests write."""

import contextlib
import io
import os
import pty
import subprocess
import sys
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


DRAWING = """
from ewq.harness.terminal import lines_drawn

def test_drawing(pytestconfig):
    with lines_drawn(pytestconfig) as (draw, tell):
        draw and draw(["fp16 perplexity, 2 more", "bnb-nf4 starting, 3 more"])
        tell("told above")
        draw and draw(["fp16 mmlu, 1 more"])
"""


def test_workers_are_drawn_on_a_terminal_although_pytest_captures(tmp_path):
    shown = output_on_terminal(tmp_path)
    assert "fp16 perplexity, 2 more\r\nbnb-nf4 starting, 3 more" in shown
    erased = "\x1b[2K\x1b[1A\x1b[2K"  # both lines, before what is told in their place
    assert erased + "told above" in shown
    assert shown.index("told above") < shown.index("fp16 mmlu, 1 more")


def test_workers_are_not_drawn_under_q(tmp_path):
    assert "fp16" not in output_on_terminal(tmp_path, "-q")


def output_on_terminal(folder, *options):
    """What pytest writes on a pseudo-terminal while a test draws."""
    (folder / "test_drawing.py").write_text(DRAWING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            parts.append(part)
    assert process.wait() == 0, b"".join(parts).decode()
    os.close(ours)
    return b"".join(parts).decode()
