"""Opens :mod:`ewq.pytest_plugin` to ``pytest --pyargs ewq.benchmarks``, and to nothing else.

pytest loads this module wherever ewq is installed: it must not change other projects' runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

BENCHMARKS = "ewq.benchmarks"
"""The benchmarks as a wheel carries them."""


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Add ewq's options and fixtures where its benchmarks are named on the command line."""
    if any(
        each == BENCHMARKS or each.startswith((f"{BENCHMARKS}.", f"{BENCHMARKS}::"))
        for each in args
    ):
        early_config.pluginmanager.import_plugin("ewq.pytest_plugin")
