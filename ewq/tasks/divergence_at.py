"""Divergence elsewhere than in short windows: deep in a context, and on FP16's own answers.

Members are depths in tokens, and ``chat``: people run chats, and quantized caches and long contexts
fail where windows of 512 tokens of prose do not look.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq.data.distributions import Reference
from ewq.data.texts import TextSet
from ewq.data.windows import Window, bos_token
from ewq.errors import NotApplicable
from ewq.files import content_key
from ewq.model import LanguageModel
from ewq.tasks.divergence import measure, record_windows
from ewq.tasks.lm_eval import end_tokens
from ewq.tasks.table import CHAT, DIVERGENCE_AT, OF_FAMILY, Inputs

TASK = DIVERGENCE_AT
__all__ = ["measure", "record"]
PROMPTS: Mapping[str, str] = tomllib.loads(
    Path(__file__).with_name("chats.toml").read_text(encoding="utf-8")
)
ANSWER_TOKENS = 64
"""Most tokens of an answer."""
SCORED = 256
"""Tokens at the end of a deep window, or half of it."""
MOST_WINDOWS, FEWEST_WINDOWS = 8, 2


def record(inputs: Inputs, folder: Path) -> Reference:
    """The reference's distributions; a NotApplicable where the model or the texts have none."""
    model, member = inputs.model(), inputs.task.partition(OF_FAMILY)[2]
    chat = member == CHAT
    windows = own_answers(model) if chat else deep_windows(model, inputs.texts(), int(member))
    # Answers are drawn once, by the reference: who scored which tokens is told by these alone.
    settings = {"at": member, "tokens": content_key([list(window.ids) for window in windows])}
    return record_windows(model, settings, windows, folder, inputs.progress)


def deep_windows(model: LanguageModel, texts: TextSet, depth: int) -> list[Window]:
    """All texts as one, in whole windows of ``depth`` tokens; only their last ones are scored."""
    if depth > (context := model.info.context_length):
        raise NotApplicable(f"a depth of {depth} tokens exceeds the model's context of {context}")
    bos, text = bos_token(model.tokenizer), "\n\n".join(each.text for each in texts.documents)
    first = [] if bos is None else [bos]
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    step = depth - len(first)
    count = min(len(ids) // step, MOST_WINDOWS)
    if count < FEWEST_WINDOWS:
        short = f"the texts have {len(ids)} tokens, not {FEWEST_WINDOWS} times {depth}"
        raise NotApplicable(f"{short}: give longer ones with --ewq-texts")
    start = depth - min(SCORED, depth // 2)
    parts = (ids[number * step : (number + 1) * step] for number in range(count))
    return [Window("deep", n, (*first, *part), start, 0) for n, part in enumerate(parts)]


def own_answers(model: LanguageModel) -> list[Window]:
    """Answers drawn from the model's own distributions; they are scored, not the prompts."""
    tokenizer, engine = model.tokenizer, model.info.engine
    sample: Any = getattr(model, "sample", None)
    if sample is None or not getattr(tokenizer, "chat_template", None):
        lacks = "chat template" if sample else f"samples drawn by {engine}"
        raise NotApplicable(f"the model has no {lacks}: its own answers are not measured")
    windows = []
    for number, text in enumerate(PROMPTS.values()):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        own = sample(ids, ANSWER_TOKENS, end_tokens(tokenizer), seed=number)
        windows.append(Window(CHAT, number, (*ids, *own), len(ids), 0))
    return windows
