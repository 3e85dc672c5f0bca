"""MMLU by the likelihood of the choices' own text, for models to whom letters mean nothing yet.

Zero-shot; the log-likelihood of each choice is divided by its length in characters, as in
``acc_norm`` of lm-evaluation-harness's ``mmlu_continuation``.
"""

import numpy as np

from ewq.data.mmlu import LETTERS, MmluData, Question
from ewq.measurement import Json, TaskResult
from ewq.model import Branches, LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.tasks.mmlu_scores import answers_result, encode_pairs, require_questions
from ewq.tasks.mmlu_scores import pair as pair
from ewq.tasks.table import Inputs

TASK = "mmlu_cloze"
QUESTIONS_PER_CALL = 32


def measure(inputs: Inputs) -> TaskResult:
    """The tier's questions."""
    return run(inputs.model(), inputs.questions(), progress=inputs.progress)


def run(model: LanguageModel, data: MmluData, *, progress: Progress = NO_PROGRESS) -> TaskResult:
    """Score the four choices of every question as continuations; the likeliest is the answer."""
    require_questions(data, 0)
    asked = [_encode(model, *numbered) for numbered in enumerate(data.test, start=1)]
    sums = np.empty((len(asked), len(LETTERS)), dtype=np.float32)
    # Prompts of one length are worked on together.
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i][0]))
    with step(progress, "MMLU (cloze)", len(asked), "questions") as advance:
        for begin in range(0, len(order), QUESTIONS_PER_CALL):
            chosen = order[begin : begin + QUESTIONS_PER_CALL]
            scores = model.continuation_scores([asked[i] for i in chosen])
            sums[chosen] = [[each[:, 0].sum() for each in choices] for choices in scores]
            advance(len(chosen))
    lengths = np.array([[max(len(c), 1) for c in q.choices] for q in data.test])
    choices = (sums / lengths).argmax(axis=1).tolist()
    protocol: dict[str, Json] = {
        "prompt": "lm-eval mmlu_continuation 1.0",
        "normalization": "characters",
        "shots": 0,
    }
    return answers_result(TASK, model, data, choices, sums, protocol)


def _encode(model: LanguageModel, number: int, question: Question) -> Branches:
    """The tokens of the question and of each choice's text after it."""
    contexts = [prompt(question)] * len(question.choices)
    heads, tails = encode_pairs(model.tokenizer, contexts, [f" {c}" for c in question.choices])
    # The last token is only predicted, never fed.
    longest = len(heads[0]) + max(map(len, tails)) - 1
    model.info.require_context(longest, f"{question.subject} (question {number} of the data)")
    return heads[0], tails


def prompt(question: Question) -> str:
    """The question as ``mmlu_continuation`` asks it."""
    name = question.subject.replace("_", " ")
    return (
        f"The following are questions (with answers) about {name}.\n\n"
        f"Question: {question.text.strip()}\nAnswer:"
    )
