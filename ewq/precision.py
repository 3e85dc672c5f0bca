"""The three precisions a plan can give a weight."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Precision of one weight; each backend maps it to its own storage type.

    ``RAW`` leaves the checkpoint's dtype, ``EIGHT_BIT`` is LLM.int8 in
    bitsandbytes and Q8_0 in GGUF, ``FOUR_BIT`` is NF4 and Q4_K.
    """

    RAW = "raw"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"
