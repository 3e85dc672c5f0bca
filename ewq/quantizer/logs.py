"""Messages of bitsandbytes that repeat without end or concern nobody."""

from __future__ import annotations

import logging

QUIET = (
    # The cast to float16, formatted anew at every int8 product of every token of every layer,
    # which costs more than a small product.
    "bitsandbytes.autograd._functions",
    # That an optional kernel package is not installed, at every import.
    "bitsandbytes.backends.cpu.ops",
)


def quiet_bitsandbytes() -> None:
    """Let those loggers report errors only; a level that the user chose is left alone."""
    for name in QUIET:
        of = logging.getLogger(name)
        if of.level == logging.NOTSET:
            of.setLevel(logging.ERROR)
