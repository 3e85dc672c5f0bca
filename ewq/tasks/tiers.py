"""How much is measured: three tiers, and less of it where there is no GPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """Sizes of every task. All of them end up in the records' settings."""

    mmlu_questions: int | None
    """Questions of a seeded, stratified subset; ``None`` for all."""
    text_tokens: int | None
    """Most tokens scored for perplexity in each domain; ``None`` for all."""
    divergence_tokens: int
    """Most tokens in each domain whose full distributions are compared with the reference's."""
    prompt_tokens: int
    new_tokens: int
    batch_sizes: tuple[int, ...]
    rounds: int
    warmup_rounds: int
    sample_tokens: int
    noise_questions: int
    """Questions asked three times to see what moves without any change."""
    lm_eval_documents: int | None
    """Documents of each task of lm-eval, drawn with a seed; ``None`` for all."""


_GPU = {
    "smoke": Tier(24, 256, 128, 64, 8, (1,), 3, 1, 12, 8, 8),
    "quick": Tier(1140, None, 4096, 512, 128, (1, 8), 5, 2, 64, 200, 1000),
    "full": Tier(None, None, 16384, 512, 128, (1, 8), 10, 3, 64, 200, None),
}
# A CPU decodes some ten tokens a second: the same protocol on fewer tokens.
_CPU = {
    "smoke": _GPU["smoke"],
    "quick": Tier(72, 1000, 384, 128, 16, (1,), 3, 1, 16, 12, 100),
    "full": Tier(None, None, 4096, 512, 64, (1, 8), 5, 2, 48, 100, None),
}
TIERS = tuple(_GPU)


def tier_sizes(name: str, device: str) -> Tier:
    """The sizes of tier ``name`` on ``device`` (``cpu`` or ``cuda...``)."""
    return (_CPU if device == "cpu" else _GPU)[name]
