"""MMLU by the likelihood of the choices' own text, for models to whom letters mean nothing yet.

Zero-shot; the log-likelihood of each choice is divided by its length in
characters, which is what lm-evaluation-harness reports as ``acc_norm`` of
``mmlu_continuation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ewq.data.mmlu import MmluData, Question
from ewq.errors import MeasurementError
from ewq.measurement import Json, TaskResult
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress
from ewq.tasks.encoding import encode_pairs
from ewq.tasks.mmlu_scores import answers_result, require_finite, require_questions
from ewq.tasks.mmlu_scores import pair as pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ewq.tasks.table import Inputs

TASK = "mmlu_cloze"


def measure(inputs: Inputs) -> TaskResult:
    """The tier's questions."""
    return run(inputs.model(), inputs.questions(), progress=inputs.progress)


def run(model: LanguageModel, data: MmluData, *, progress: Progress = NO_PROGRESS) -> TaskResult:
    """Score the four choices of every question as continuations.

    Returns:
        The answers by the likeliest choice a character
        (:func:`ewq.tasks.mmlu_scores.answers_result`); the log-probabilities kept are sums.

    Raises:
        InputError: no questions.
        MeasurementError: a question that exceeds the model's context.
    """
    import numpy as np

    require_questions(data, 0)
    progress.start("MMLU (cloze)", len(data.test), "questions")
    rows = []
    try:
        for number, question in enumerate(data.test, start=1):
            rows.append(score_question(model, question, number))
            progress.advance(1)
    finally:
        progress.finish()
    sums = np.stack(rows)
    require_finite(sums, "MMLU (cloze)")
    lengths = np.array([[max(len(c), 1) for c in q.choices] for q in data.test])
    choices = (sums / lengths).argmax(axis=1).tolist()
    protocol: dict[str, Json] = {
        "prompt": "lm-eval mmlu_continuation 1.0",
        "normalization": "characters",
        "shots": 0,
    }
    return answers_result(TASK, model, data, choices, sums, protocol)


def score_question(model: LanguageModel, question: Question, number: int) -> NDArray[np.float32]:
    """Log-likelihood of each choice's text after the question, ``[4]``.

    Args:
        model: the model asked.
        question: the question.
        number: its place in the data, for the error message.
    """
    import numpy as np

    contexts = [prompt(question)] * len(question.choices)
    heads, tails = encode_pairs(model.tokenizer, contexts, [f" {c}" for c in question.choices])
    _check_length(model, heads[0], tails, f"{question.subject} (question {number} of the data)")
    sums = [part.sum() for part in model.token_logprobs(heads[0], tails)]
    return np.array(sums, dtype=np.float32)


def prompt(question: Question) -> str:
    """The question as ``mmlu_continuation`` asks it."""
    name = question.subject.replace("_", " ")
    return (
        f"The following are questions (with answers) about {name}.\n\n"
        f"Question: {question.text.strip()}\nAnswer:"
    )


def _check_length(
    model: LanguageModel, head: Sequence[int], tails: Sequence[Sequence[int]], where: str
) -> None:
    # The last token is only predicted, never fed.
    longest, limit = len(head) + max(map(len, tails)) - 1, model.info.context_length
    if longest > limit:
        raise MeasurementError(
            f"{where}: {longest} tokens exceed the context length of {limit}; nothing is truncated"
        )
