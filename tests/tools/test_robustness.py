"""A reduced form of ``tools/robustness.py``: every odd folder planned, or refused by all alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from ewq.checkpoint.layout import check_original
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import EwqError
from tools import robustness
from tools.odd_folders import NAMES, ODD, REFUSED, make_odd

OF_VALUES = ("NaN", "infinity in a weight", "an empty tensor", "integers")
"""What only reading the weights can tell."""
ORIGINALS_ONLY = ("quantized by GPTQ", "quantization config is a word")
"""Planned from weights that are there, but no reference."""


def test_what_is_refused_is_odd():
    assert set(REFUSED) < set(ODD)


@pytest.mark.parametrize("name", [*ODD, *NAMES])
def test_an_odd_folder_gets_a_plan_or_one_line(name: str, tmp_path: Path):
    answer = robustness.plan(make_odd(name, tmp_path), tmp_path)

    assert answer.good, answer.text
    assert (answer.bytes is None) == (name in REFUSED), answer.text
    assert REFUSED.get(name, "bytes") in answer.text
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("name", [*ODD, *NAMES])
def test_benchmarks_and_quantizing_begin_with_the_same_answer(name: str, tmp_path: Path):
    folder = make_odd(name, tmp_path)
    refused = (*(name for name in REFUSED if name not in OF_VALUES), *ORIGINALS_ONLY)

    if name not in refused:
        check_original(open_checkpoint(folder))
        return
    with pytest.raises(EwqError) as caught:
        check_original(open_checkpoint(folder))
    assert REFUSED.get(name, "is quantized already") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["float32", "tied by default, head stored", "config says float32"])
def test_quantizing_gives_what_the_plan_says(name: str, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    answer = robustness.quantize(make_odd(name, tmp_path), tmp_path)

    assert answer.good, answer.text
    assert "bytes" in answer.text


def test_infinity_outside_the_plan_is_not_delivered(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    answer = robustness.quantize(make_odd("infinity in the embedding", tmp_path), tmp_path)

    assert answer.good, answer.text
    assert "model.embed_tokens.weight of" in answer.text
    assert not (tmp_path / "quantized").exists()
