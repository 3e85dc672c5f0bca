"""How much answers move when nothing changes but the order of arithmetic, as in other batches."""

import numpy as np
from numpy.typing import NDArray

from ewq.data.mmlu import MmluData
from ewq.measurement import Metric, TaskResult
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.stats import share_stderr
from ewq.tasks.mmlu import SHOTS, score_subject
from ewq.tasks.mmlu import run as run_mmlu
from ewq.tasks.mmlu_scores import unpack_logprobs
from ewq.tasks.table import Inputs

Logprobs = NDArray[np.float32]
TASK = "noise_floor"


def measure(inputs: Inputs) -> TaskResult:
    """As many of the tier's questions as it asks thrice."""
    questions = inputs.sizes.noise_questions
    return run(inputs.model(), inputs.questions(), questions=questions, progress=inputs.progress)


def run(
    model: LanguageModel, data: MmluData, *, questions: int, progress: Progress = NO_PROGRESS
) -> TaskResult:
    """Ask a sample of questions three times: twice alike, once one question at a time.

    For ``repeat`` (same batches) and ``regrouped`` (batches of one): ``flips/...``, the share of
    answers that changed, and ``logprob_change/...``, a letter's largest change in nats.
    """
    sample = data.subset(min(questions, len(data.test)))
    first = run_mmlu(model, sample, progress=progress)
    again = run_mmlu(model, sample, progress=progress)
    base = unpack_logprobs(str(first.side["logprobs"]))
    metrics = _changes("repeat", base, unpack_logprobs(str(again.side["logprobs"])))
    metrics |= _changes("regrouped", base, _one_by_one(model, sample, progress))
    moved = metrics["logprob_change/repeat"].value
    notes = () if moved == 0 else (f"the same run twice differs by up to {moved:.2g} nats",)
    return TaskResult(TASK, first.settings, metrics, first.items, notes=notes)


def _one_by_one(model: LanguageModel, data: MmluData, progress: Progress) -> Logprobs:
    letters = []
    with step(progress, "MMLU, one at a time", len(data.test), "questions") as advance:
        for question in data.test:
            examples = data.dev[question.subject][:SHOTS]
            letters.append(score_subject(model, question.subject, [question], examples))
            advance(1)
    return np.concatenate(letters)


def _changes(name: str, base: Logprobs, other: Logprobs) -> dict[str, Metric]:
    n = len(base)
    flips = int((base.argmax(axis=1) != other.argmax(axis=1)).sum())
    return {
        f"flips/{name}": Metric(flips / n, "fraction", False, n, share_stderr(flips, n)),
        f"logprob_change/{name}": Metric(float(abs(base - other).max()), "nats", False, n),
    }
