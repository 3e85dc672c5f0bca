"""What both MMLU tasks share: questions as tokens, answers as accuracies, doubts and pairs."""

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ewq import stats
from ewq.data.mmlu import GROUP_OF, LETTERS, MmluData
from ewq.errors import InputError, MeasurementError
from ewq.measurement import Doubt, DoubtKind, Items, Json, Metric, TaskResult, require_same_settings
from ewq.model import LanguageModel

Tally = dict[str, tuple[int, int]]
"""Subject -> right answers and questions."""
PROTOCOL_KEYS = ("data", "subjects", "shots", "prompt")
"""Settings that two results must share for their answers to be about the same questions."""


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with BOS where the tokenizer adds one by itself and the text has none."""
    bos: str = getattr(tokenizer, "bos_token", None) or ""
    doubled = bool(bos and texts) and texts[0].startswith(bos)
    # verbose: no remark on lengths, which are checked against the model later.
    coded = tokenizer(list(texts), add_special_tokens=not doubled, verbose=False)
    return [list(ids) for ids in coded["input_ids"]]


def encode_pairs(
    tokenizer: Any, contexts: Sequence[str], continuations: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of contexts and of their continuations, encoded jointly.

    A continuation alone would often be other tokens. Trailing spaces of a context belong to its
    continuation. An InputError where the tokenizer puts an end-of-text token after every text.
    """
    heads = encode(tokenizer, [context.rstrip() for context in contexts])
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is not None and heads and heads[0][-1:] == [eos]:
        raise InputError("the tokenizer ends every text; switch its add_eos_token off")
    whole = encode(tokenizer, [a + b for a, b in zip(contexts, continuations, strict=True)])
    return heads, [ids[len(head) :] for ids, head in zip(whole, heads, strict=True)]


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The longest run of tokens that all rows begin with."""
    # Whatever the smallest and the largest row share, all rows share.
    pairs = zip(min(rows), max(rows), strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def answers_result(
    task: str,
    model: LanguageModel,
    data: MmluData,
    choices: Sequence[int],
    logprobs: NDArray[np.float32],
    protocol: Mapping[str, Json],
) -> TaskResult:
    """The result of having chosen ``choices`` on grounds of ``logprobs`` ``[n, 4]``.

    Metrics are those of :func:`accuracy_metrics`, the ``answer`` of each item the letter chosen,
    upper case where it is right; ``side["logprobs"]`` is for :func:`unpack_logprobs`.
    """
    require_finite(logprobs, task)
    items = pack_items(choices, data)
    packed = base64.b64encode(logprobs.astype("<f4").tobytes()).decode("ascii")
    return TaskResult(
        task=task,
        settings={
            **protocol,
            "dtype": model.info.dtype,
            "batch_tokens": getattr(model, "batch_tokens", None),
            "data": data.digest,
            "subjects": [[name, size] for name, size in data.subjects.items()],
        },
        metrics=accuracy_metrics(items, data.subjects),
        items=Items({"answer": items}),
        doubts=chance_doubts(items, data),
        side={"logprobs": packed},
    )


def unpack_logprobs(packed: str) -> NDArray[np.float32]:
    """The ``[questions, 4]`` array from base64 of little-endian float32, row by row."""
    return np.frombuffer(base64.b64decode(packed), dtype="<f4").reshape(-1, len(LETTERS))


def pack_items(predicted: Sequence[int], data: MmluData) -> str:
    """One character a question, in order: the letter chosen, upper case where it is right."""
    return "".join(
        LETTERS[choice] if choice == question.answer else LETTERS[choice].lower()
        for choice, question in zip(predicted, data.test, strict=True)
    )


def accuracy_metrics(items: str, subjects: Mapping[str, int]) -> dict[str, Metric]:
    """``accuracy``, ``accuracy/GROUP`` and ``accuracy_macro``, and ``answered_A..D``.

    But for the macro accuracy they weigh questions, with errors pooled over subjects as
    lm-evaluation-harness does.
    """
    tally = _tally(items, subjects)
    accuracies = [count / n for count, n in tally.values()]
    macro = math.hypot(*_subject_errors(tally)) / len(tally)
    n = len(items)
    metrics = {
        "accuracy": _size_weighted(tally),
        "accuracy_macro": Metric(sum(accuracies) / len(tally), "fraction", True, n, macro),
    }
    groups: dict[str, Tally] = {}
    for subject in tally:
        if group := GROUP_OF.get(subject):
            groups.setdefault(group, {})[subject] = tally[subject]
    metrics |= {f"accuracy/{group}": _size_weighted(part) for group, part in groups.items()}
    answered = Counter(items.upper())
    for letter in LETTERS:
        error = stats.share_stderr(answered[letter], n)
        metrics[f"answered_{letter}"] = Metric(answered[letter] / n, "fraction", None, n, error)
    return metrics


def _tally(items: str, subjects: Mapping[str, int]) -> Tally:
    letters = iter(items)
    return {
        subject: (sum(letter.isupper() for letter in islice(letters, n)), n)
        for subject, n in subjects.items()
    }


def _total(tally: Tally) -> tuple[int, int]:
    return sum(right for right, _ in tally.values()), sum(n for _, n in tally.values())


def _subject_errors(tally: Tally) -> list[float]:
    """Of each subject's accuracy; where all its answers are alike, by the spread of all."""
    right, n = _total(tally)
    spread = stats.share_stderr(right, n) * math.sqrt(n)
    return [
        stats.share_stderr(count, size) if 0 < count < size else spread / math.sqrt(size)
        for count, size in tally.values()
    ]


def _size_weighted(tally: Tally) -> Metric:
    """Accuracy over all questions of some subjects, its error pooled over the subjects."""
    right, n = _total(tally)
    if n - len(tally) >= len(tally):
        error = stats.pooled_stderr(_subject_errors(tally), [size for _, size in tally.values()])
    else:
        # Hardly more than one question a subject leaves nothing to pool: treat them as one group.
        error = stats.share_stderr(right, n)
    return Metric(right / n, "fraction", True, n, error)


def chance_doubts(items: str, data: MmluData) -> tuple[Doubt, ...]:
    """A doubt where the accuracy cannot be told from always giving the same letter."""
    answers = Counter(LETTERS[question.answer] for question in data.test)
    count, letter = max((count, letter) for letter, count in answers.items())
    constant = count / len(items)
    accuracy = _size_weighted(_tally(items, data.subjects))
    value, stderr = accuracy.value, accuracy.stderr or 0.0
    text = (
        f"accuracy {value:.3f} ± {stderr:.3f} is at chance level: always answering {letter} scores "
        f"{constant:.3f}, so differences between variants mean nothing"
    )
    figures = {"accuracy": value, "stderr": stderr, "constant": constant}
    at_chance = value - 2 * stderr < constant
    return (Doubt(DoubtKind.CHANCE, text, figures),) if at_chance else ()


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """Compare two results question by question; errors are clustered by subject."""
    require_same_settings(result.task, result.settings, reference.settings, PROTOCOL_KEYS)
    subjects = cast("Sequence[tuple[str, int]]", result.settings["subjects"])
    base, new = (map(str.isupper, each.items.column("answer")) for each in (reference, result))
    clusters = [name for name, size in subjects for _ in range(size)]
    delta, flips, mcnemar_p = stats.paired_answers(list(base), list(new), clusters)
    return {"accuracy_delta": delta, "flips": flips, "mcnemar_p": mcnemar_p}


def require_finite(logprobs: NDArray[np.float32], what: str) -> None:
    """Refuse log-probabilities that are no numbers: the greatest of them would be answer A."""
    broken = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if len(broken):
        first = f"{what}: log-probabilities of question {broken[0] + 1} are not finite"
        raise MeasurementError(f"{first} ({len(broken)} such): the model computes NaN or infinity")


def require_questions(data: MmluData, shots: int) -> None:
    """Raise an InputError where there is nothing to ask or too few worked examples."""
    if not data.test:
        raise InputError(f"{data.source}: no MMLU questions")
    for subject in data.subjects:
        have = len(data.dev.get(subject, ()))
        if have < shots:
            raise InputError(f"{data.source}: {subject} has {have} dev rows, not {shots}")
