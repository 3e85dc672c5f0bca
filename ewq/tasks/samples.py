"""Greedy continuations of a few fixed prompts, for people to read.

Figures say how much quantization changed; these show what. The prompts are
plain text to be continued, the same for base and for chat models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ewq.data.windows import bos_token
from ewq.errors import MeasurementError
from ewq.measurement import Items, Metric, TaskResult
from ewq.progress import NO_PROGRESS, Progress
from ewq.stats import clustered_ratio

if TYPE_CHECKING:
    from ewq.model import LanguageModel
    from ewq.tasks.table import Inputs

TASK = "samples"
PROMPTS = {
    "code": 'def is_prime(n):\n    """Return True if n is a prime number."""\n',
    "maths": (
        "Question: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\n"
        "Answer: Let us work it out step by step."
    ),
    "summary": (
        "Text: The old bridge over the river was closed on Monday after engineers found cracks in "
        "two of its pillars. Buses now take a detour of twenty minutes. Repairs are expected to "
        "last until spring and to cost four million euros.\nSummary in one sentence:"
    ),
    "translation": (
        "English: The weather is beautiful today, so we are going for a walk.\nFrench:"
    ),
    "vietnamese": "Câu hỏi: Thủ đô của Việt Nam là thành phố nào?\nTrả lời:",
    "facts": "Question: Which planet of the solar system is the largest?\nAnswer:",
    "story": "Once upon a time, in a small village by the sea, there lived a girl who",
    "list": "Three simple ways to save energy at home:\n1.",
}


def measure(inputs: Inputs) -> TaskResult:
    """All prompts, continued by as many tokens as the tier asks for."""
    return run(inputs.model(), new_tokens=inputs.sizes.sample_tokens, progress=inputs.progress)


def run(
    model: LanguageModel,
    *,
    new_tokens: int,
    prompts: dict[str, str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Continue every prompt greedily by exactly ``new_tokens`` tokens.

    There is no metric before a reference is given to :func:`pair`. Items:
    each ``prompt``'s name and the new ``tokens``. ``side["samples"]``: name, prompt and
    continuation.

    Raises:
        MeasurementError: a prompt does not fit the context.
    """
    chosen = PROMPTS if prompts is None else prompts
    tokens: dict[str, list[int]] = {}
    progress.start("generation samples", len(chosen), "prompts")
    try:
        for name, prompt in chosen.items():
            tokens[name] = _continue(model, name, prompt, new_tokens)
            progress.advance(1)
    finally:
        progress.finish()
    return TaskResult(
        task=TASK,
        settings={
            "new_tokens": new_tokens,
            "bos_added": bos_token(model.tokenizer) is not None,
            "prompts": dict(chosen),
        },
        metrics={},
        items=Items({"prompt": list(tokens), "tokens": list(tokens.values())}),
        side={
            "samples": [
                {"name": name, "prompt": prompt, "text": _text(model.tokenizer, tokens[name])}
                for name, prompt in chosen.items()
            ]
        },
    )


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """How much of the reference's continuations the variant repeats.

    ``samples_token_agreement`` is the share of positions with the reference's
    token, ``samples_common_tokens`` the mean number of tokens before the first
    that differs. Errors are over prompts.

    Raises:
        MeasurementError: other prompts or another number of tokens.
    """
    if dict(result.settings) != dict(reference.settings):
        raise MeasurementError("samples are not comparable: prompts or lengths differ")
    new, base = result.items.column("tokens"), reference.items.column("tokens")
    pairs = list(zip(new, base, strict=True))
    lengths = [len(tokens) for _, tokens in pairs]
    equal = clustered_ratio([_equal(*both) for both in pairs], lengths)
    common = clustered_ratio([_common(*both) for both in pairs], [1] * len(pairs))
    count = len(pairs)
    return {
        "samples_token_agreement": Metric(equal.value, "fraction", True, count, equal.stderr),
        "samples_common_tokens": Metric(common.value, "count", True, count, common.stderr),
    }


def _continue(model: LanguageModel, name: str, prompt: str, new_tokens: int) -> list[int]:
    ids = list(model.tokenizer.encode(prompt, add_special_tokens=False))
    bos = bos_token(model.tokenizer)
    ids = ids if bos is None else [bos, *ids]
    if len(ids) + new_tokens > model.info.context_length:
        raise MeasurementError(
            f"prompt {name!r} has {len(ids)} tokens; with {new_tokens} new ones it does not fit "
            f"the model's context of {model.info.context_length}"
        )
    return list(model.generate([ids], new_tokens).tokens[0])


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False))


def _equal(new: Sequence[int], base: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(new, base, strict=True))


def _common(new: Sequence[int], base: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(new, base, strict=True)):
        if a != b:
            return position
    return len(base)
