"""MMLU by the likelihood of the choices' own text, for models to whom letters mean nothing yet.

Zero-shot; the log-likelihood of each choice is divided by its length in characters, as in
``acc_norm`` of lm-evaluation-harness's ``mmlu_continuation``.
"""

import numpy as np
from numpy.typing import NDArray

from ewq.data.mmlu import MmluData, Question
from ewq.measurement import Json, TaskResult
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.tasks.mmlu_scores import answers_result, encode_pairs, require_finite, require_questions
from ewq.tasks.mmlu_scores import pair as pair
from ewq.tasks.table import Inputs

TASK = "mmlu_cloze"


def measure(inputs: Inputs) -> TaskResult:
    """The tier's questions."""
    return run(inputs.model(), inputs.questions(), progress=inputs.progress)


def run(model: LanguageModel, data: MmluData, *, progress: Progress = NO_PROGRESS) -> TaskResult:
    """Score the four choices of every question as continuations; the likeliest is the answer."""
    require_questions(data, 0)
    rows = []
    with step(progress, "MMLU (cloze)", len(data.test), "questions") as advance:
        for number, question in enumerate(data.test, start=1):
            rows.append(_score(model, question, number))
            advance(1)
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


def _score(model: LanguageModel, question: Question, number: int) -> NDArray[np.float32]:
    """Log-likelihood of each choice's text after the question, ``[4]``."""
    contexts = [prompt(question)] * len(question.choices)
    heads, tails = encode_pairs(model.tokenizer, contexts, [f" {c}" for c in question.choices])
    # The last token is only predicted, never fed.
    longest = len(heads[0]) + max(map(len, tails)) - 1
    model.info.require_context(longest, f"{question.subject} (question {number} of the data)")
    sums = [part.sum() for part in model.token_logprobs(heads[0], tails)]
    return np.array(sums, dtype=np.float32)


def prompt(question: Question) -> str:
    """The question as ``mmlu_continuation`` asks it."""
    name = question.subject.replace("_", " ")
    return (
        f"The following are questions (with answers) about {name}.\n\n"
        f"Question: {question.text.strip()}\nAnswer:"
    )
