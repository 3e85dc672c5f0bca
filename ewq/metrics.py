"""The vocabulary of metrics: which task has which, and what may be said about them."""

from __future__ import annotations

import re

_ACCURACY = (r"accuracy(_macro)?(/[\w-]+)?", r"answered_[A-D]")
_ACCURACY_PAIRED = (r"accuracy_delta", r"flips", r"mcnemar_p")
_SPREAD = r"(_b\d+)?(_p10|_p90)?"
"""Batch size above 1, then percentile."""

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "mmlu": (*_ACCURACY, *_ACCURACY_PAIRED),
    "mmlu_cloze": (*_ACCURACY, *_ACCURACY_PAIRED),
    "perplexity": (r"perplexity(/[\w-]+)?", r"bits_per_byte(/[\w-]+)?", r"ln_ppl_ratio(/[\w-]+)?"),
    "divergence": (r"kld_mean", r"kld_p\d+", r"top1_agreement", r"rms_delta_p", r"ln_ppl_ratio"),
    "throughput": (
        rf"prefill_tokens_per_s{_SPREAD}",
        rf"decode_tokens_per_s{_SPREAD}",
        rf"ttft_s{_SPREAD}",
        r"(prefill|decode)_ratio(_b\d+)?",
    ),
    "memory": (
        r"weights_bytes",
        r"bits_per_weight",
        r"vram_peak_bytes",
        r"ram_peak_bytes",
        r"load_peak_ram_bytes",
        r"load_s",
    ),
    "samples": (r"samples_token_agreement(/[\w-]+)?", r"samples_common_tokens"),
    "noise_floor": (r"(flips|logprob_change)/(repeat|regrouped)",),
}
"""Task -> patterns of the metric keys it may report ."""

_PAIRED = re.compile(
    r"accuracy_delta|flips|mcnemar_p|ln_ppl_ratio(/.+)?|kld_\w+|top1_agreement|rms_delta_p"
    r"|(prefill|decode)_ratio(_b\d+)?|samples_.+"
)
_CLOCKED = re.compile(r"(prefill|decode)_(tokens_per_s|ratio).*|ttft_s.*|load_s")
_CHOSEN = re.compile(r"accuracy.*|mcnemar_p")

DEVICE_ALTERNATIVES = {
    "vram_peak_bytes": "ram_peak_bytes",
    "ram_peak_bytes": "vram_peak_bytes",
}
"""Metrics of which a device has one or the other: the absent one is not missing."""


def is_known(task: str, metric: str) -> bool:
    """Whether ``task`` may report ``metric``."""
    return any(re.fullmatch(pattern, metric) for pattern in TASK_METRICS.get(task, ()))


def is_paired(metric: str) -> bool:
    """Whether the metric compares with the reference variant, which therefore has none itself."""
    return _PAIRED.fullmatch(metric) is not None


def is_clocked(metric: str) -> bool:
    """Whether the metric comes from a clock, and so suffers from noise and throttling."""
    return _CLOCKED.fullmatch(metric) is not None


def is_choice(metric: str) -> bool:
    """Whether the metric says nothing at chance level: a share of right answers, or its change."""
    return _CHOSEN.fullmatch(metric) is not None
