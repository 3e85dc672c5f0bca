"""Commands as a user meets them: what they print, and how they end."""

from __future__ import annotations

import sys

import pytest

from ewq.cli import main


class Said:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def ewq(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs ``ewq ARGUMENTS`` in this process."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["ewq", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Said(code, *capsys.readouterr())

    return run
