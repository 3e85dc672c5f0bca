"""The three precisions a plan can give a weight."""

from enum import StrEnum


class Precision(StrEnum):
    """Precision of a weight: ``EIGHT_BIT`` is LLM.int8 or Q8_0, ``FOUR_BIT`` NF4 or Q4_K."""

    RAW = "raw"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"
