"""Threads that wait without spinning."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Let OpenMP's idle threads sleep, unless the environment says otherwise.

    By default they spin for a while, which on cores shared with another process takes the time
    that both need. Read once, when torch or llama.cpp is loaded; child processes inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
