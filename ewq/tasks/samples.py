"""Greedy continuations of a few fixed prompts of plain text, for people to read."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from ewq.data.windows import bos_token
from ewq.measurement import Items, Metric, TaskResult, require_same_settings
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.stats import clustered_ratio, clustered_share_stderr
from ewq.tasks.table import Inputs

TASK = "samples"
PROMPTS: Mapping[str, str] = tomllib.loads(
    Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8")
)


def measure(inputs: Inputs) -> TaskResult:
    """All prompts, continued by as many tokens as the tier asks for."""
    return run(inputs.model(), new_tokens=inputs.sizes.sample_tokens, progress=inputs.progress)


def run(
    model: LanguageModel,
    *,
    new_tokens: int,
    prompts: Mapping[str, str] = PROMPTS,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Continue every prompt greedily by exactly ``new_tokens`` tokens; metrics come by pairing."""
    bos = bos_token(model.tokenizer)
    first = [] if bos is None else [bos]
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    ids = [[*first, *encode(text, add_special_tokens=False)] for text in prompts.values()]
    for name, row in zip(prompts, ids, strict=True):
        what = f"prompt {name!r} and {new_tokens} new tokens"
        model.info.require_context(len(row) + new_tokens, what)
    with step(progress, "generation samples", len(prompts), "prompts") as advance:
        found = model.generate(ids, new_tokens).tokens
        advance(len(prompts))
    tokens = dict(zip(prompts, map(list, found), strict=True))
    return TaskResult(
        task=TASK,
        settings={"new_tokens": new_tokens, "bos_added": bos is not None, "prompts": dict(prompts)},
        metrics={},
        items=Items({"prompt": list(tokens), "tokens": list(tokens.values())}),
        side={
            "samples": [
                {"name": name, "prompt": prompt, "text": decode(tokens[name])}
                for name, prompt in prompts.items()
            ]
        },
    )


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """How much of the reference's continuations the variant repeats.

    ``samples_token_agreement`` is the share of positions with the reference's token,
    ``samples_common_tokens`` the mean number of tokens before the first that differs.
    """
    require_same_settings(TASK, result.settings, reference.settings)
    new, base = result.items.column("tokens"), reference.items.column("tokens")
    same = [[a == b for a, b in zip(*both, strict=True)] for both in zip(new, base, strict=True)]
    count = len(same)
    hits, sizes = list(map(sum, same)), list(map(len, same))
    equal = clustered_ratio(hits, sizes)
    stderr = clustered_share_stderr(equal.stderr, sum(hits), sum(sizes))
    common = clustered_ratio([[*each, False].index(False) for each in same], [1] * count)
    return {
        "samples_token_agreement": Metric(equal.value, "fraction", True, count, stderr),
        "samples_common_tokens": Metric(common.value, "count", True, count, common.stderr),
    }
