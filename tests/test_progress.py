"""The bar on a terminal: it comes, it goes, and what stood above it stays."""

import pytest

from ewq import progress as progress_module
from ewq.progress import LogProgress, TerminalProgress

WIDTH = 80


class Screen:
    """The last line of a terminal."""

    def __init__(self):
        self.line, self.column = "", 0

    def write(self, text):
        for char in text:
            if char == "\r":
                self.column = 0
            else:
                self.line = self.line[: self.column] + char + self.line[self.column + 1 :]
                self.column += 1
        return len(text)


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture
def progress(screen):
    return TerminalProgress(screen.write, lambda: WIDTH)


def test_a_bar_is_drawn_at_once_and_fits_the_line(progress, screen):
    progress.start("MMLU", 200, "questions")
    assert screen.line.startswith("MMLU:   0%|")
    assert "0/200" in screen.line
    assert len(screen.line) < WIDTH


def test_nothing_of_it_remains(progress, screen):
    progress.start("a long first step", 200, "questions")
    progress.finish()
    progress.start("loading", 1, "model")
    assert screen.line.strip() == "loading ..."
    progress.advance(1)
    progress.finish()
    assert (screen.line.strip(), screen.column) == ("", 0)


def test_progress_after_the_end_is_ignored(progress, screen):
    progress.advance(3)
    progress.finish()
    progress.advance(3)
    assert screen.line == ""


def test_labels_send_nothing_to_the_terminal(progress, screen):
    progress.start("finding \x1b[2Jx\n", 1, "model")
    assert screen.line.isprintable()
    assert len(screen.line) < WIDTH


def test_bytes_are_told_in_units_that_fit(progress, screen):
    progress.start("analyse", 2 * 10**9, "bytes")
    assert "0.00/2.00G" in screen.line


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
    assert [line.split(":")[0] for line in "".join(written).split("\n") if line] == [
        *("step 50", "step 100", "step 200", "step 250"),
    ]
    assert "20/100" in written[0]
    assert "<" in written[0]  # tqdm's mark before the time that is left
    assert all(text.startswith("\n") and text.endswith("\n") for text in written)
    assert "\r" not in "".join(written)
