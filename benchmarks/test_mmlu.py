"""MMLU: accuracy by letter log-likelihood, and by the choices' own text (cloze)."""

import pytest


@pytest.mark.task("mmlu")
def test_mmlu(variant, measure):
    """5-shot, the field's prompt; paired with FP16 question by question."""
    measure()


@pytest.mark.task("mmlu_cloze")
def test_mmlu_cloze(variant, measure):
    """0-shot by choice text: for models whose letter score is chance."""
    measure()
