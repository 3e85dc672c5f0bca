"""MMLU by the log-likelihood of the four letters, prompt and scoring as lm-evaluation-harness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.data.mmlu import LETTERS, MmluData, Question
from ewq.errors import InputError
from ewq.measurement import Json, TaskResult
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.tasks.mmlu_scores import (
    answers_result,
    common_prefix,
    encode_pairs,
    require_questions,
)
from ewq.tasks.mmlu_scores import pair as pair
from ewq.tasks.table import Inputs

TASK = "mmlu"
SHOTS = 5
CONTINUATIONS = tuple(f" {letter}" for letter in LETTERS)
"""The space belongs to the letter: ``" A"`` and ``"A"`` are different tokens."""


def measure(inputs: Inputs) -> TaskResult:
    """The tier's questions."""
    return run(inputs.model(), inputs.questions(), progress=inputs.progress)


def run(
    model: LanguageModel, data: MmluData, *, shots: int = SHOTS, progress: Progress = NO_PROGRESS
) -> TaskResult:
    """Ask every question after ``shots`` worked examples; the likeliest letter is the answer."""
    require_questions(data, shots)
    parts = []
    with step(progress, "MMLU", len(data.test), "questions") as advance:
        for subject, questions in data.by_subject():
            examples = data.dev.get(subject, ())[:shots]
            parts.append(score_subject(model, subject, questions, examples))
            advance(len(questions))
    logprobs = np.concatenate(parts)
    choices = logprobs.argmax(axis=1).tolist()
    protocol: dict[str, Json] = {"prompt": "lm-eval mmlu 1.0", "shots": shots}
    return answers_result(TASK, model, data, choices, logprobs, protocol)


def score_subject(
    model: LanguageModel, subject: str, questions: Sequence[Question], examples: Sequence[Question]
) -> NDArray[np.float32]:
    """Log-probabilities of A, B, C and D for the questions of one subject, ``[n, 4]``."""
    head = preamble(subject, examples)
    contexts = [head + question_text(question) for question in questions]
    ids, first = encode_pairs(model.tokenizer, contexts, [CONTINUATIONS[0]] * len(contexts))
    letters = _letter_tokens(model.tokenizer, contexts[0])
    if any(tail != letters[:1] for tail in first):
        raise InputError(f"{subject}: the letter A is not the same token after every question")
    for number, row in enumerate(ids, start=1):
        model.info.require_context(len(row), f"{subject} question {number}")
    shared = common_prefix(ids)
    return model.last_logprobs(shared, [row[len(shared) :] for row in ids], letters)


def preamble(subject: str, examples: Sequence[Question]) -> str:
    """What precedes every question of a subject: the instruction and the worked examples."""
    name = subject.replace("_", " ")
    worked = "".join(
        f"{question_text(example)} {LETTERS[example.answer]}\n\n" for example in examples
    )
    return f"The following are multiple choice questions (with answers) about {name}.\n\n{worked}"


def question_text(question: Question) -> str:
    """The question up to and without its answer; only the question itself is stripped."""
    choices = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)
    )
    return f"{question.text.strip()}{choices}\nAnswer:"


def _letter_tokens(tokenizer: Any, context: str) -> list[int]:
    _, tails = encode_pairs(tokenizer, [context] * len(LETTERS), CONTINUATIONS)
    advice = "use mmlu_cloze for this model"
    for letter, tail in zip(LETTERS, tails, strict=True):
        if len(tail) != 1:
            raise InputError(f"the tokenizer makes {len(tail)} tokens of {letter!r}; {advice}")
    letters = [tail[0] for tail in tails]
    if len(set(letters)) < len(letters):
        raise InputError(f"the tokenizer cannot tell A to D apart ({letters}); {advice}")
    return letters
