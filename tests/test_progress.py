"""The progress line on a screen: it comes, it goes, and what stood there stays."""

import io
import re

import pytest

from ewq import progress as progress_module
from ewq.progress import LogProgress, Step, TerminalProgress

PYTESTS = "benchmarks/test_mmlu.py ."
WIDTH = 80


class Screen(io.StringIO):
    """One line of a terminal that knows the two sequences that are used."""

    def __init__(self, text=""):
        super().__init__()
        self.line, self.column = text, len(text)

    def write(self, text):
        for part in re.findall(r"\x1b\[\d*[KD]|.", text):
            if part == "\x1b[K":
                self.line = self.line[: self.column]
            elif part.startswith("\x1b"):
                self.column -= int(part[2:-1])
            else:
                self.line = self.line[: self.column] + part + self.line[self.column + 1 :]
                self.column += 1
        return len(text)


@pytest.fixture
def screen():
    return Screen(PYTESTS)


@pytest.fixture
def progress(screen):
    return TerminalProgress(screen.write, lambda: WIDTH - screen.column)


def test_the_line_stands_behind_pytests_and_the_cursor_stays(progress, screen):
    progress.start("MMLU", 200, "questions")
    assert screen.line.startswith(f"{PYTESTS}MMLU [----")
    assert len(screen.line) < WIDTH
    assert screen.column == len(PYTESTS)


def test_nothing_of_it_remains(progress, screen):
    progress.start("a long first step", 200, "questions")
    progress.start("loading", 1, "model")
    assert screen.line == f"{PYTESTS}loading ..."
    progress.advance(1)
    progress.finish()
    assert (screen.line, screen.column) == (PYTESTS, len(PYTESTS))


def test_progress_after_the_end_is_ignored(progress, screen):
    progress.advance(3)
    progress.finish()
    assert screen.line == PYTESTS


def test_labels_send_nothing_to_the_terminal(progress, screen):
    progress.start("finding \x1b[2Jx\n", 1, "model")
    assert "\x1b" not in screen.line
    assert len(screen.line) < WIDTH


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (60, "perplexity [##########----------] 50/100 tokens"),
        (30, "perplexity 50/100 tokens"),
        (12, "perplexity"),
        (5, ""),
        (-3, ""),
    ],
)
def test_what_does_not_fit_is_left_out(room, shown):
    step = Step("perplexity", 100, "tokens", done=50)
    assert step.fitting(room).split(",")[0] == shown
    assert len(step.fitting(room)) <= max(0, room)


def test_bytes_are_told_in_mb():
    assert "500/2000 MB" in Step("analyse", 2 * 10**9, "bytes", done=5 * 10**8).fitting(80)


def test_a_log_gets_a_line_a_minute_with_what_is_left(monkeypatch):
    clock, written = [1000.0], []
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    log = LogProgress(written.append)
    for second in range(0, 300, 10):
        if second % 50 == 0:
            # Steps shorter than a minute are told of too, when one has passed.
            log.start(f"step {second}", 100, "questions")
        clock[0] += 10
        log.advance(10)
        if second % 50 == 40:
            log.finish()
    assert [line.split(" [")[0] for line in "".join(written).split("\n") if line] == [
        *("step 50", "step 100", "step 200", "step 250"),
    ]
    assert "left" in written[0]
    assert all(text.startswith("\n") and text.endswith("\n") for text in written)
    assert "\x1b" not in "".join(written)
