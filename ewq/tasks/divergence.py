"""How far a model's next-token distributions are from the reference's, on the same tokens.

Per scored token, with ``p`` the reference's and ``q`` the model's distribution:
``KLD = sum_v p_v (ln p_v - ln q_v)``, top-1 agreement (same most likely
token), and ``delta_p = q(correct) - p(correct)``. The definitions are
llama-perplexity's; unlike it, nothing is rounded and no tail is cut off, and
errors are clustered by document.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ewq.data.reference_logprobs import Reference, ReferenceWriter
from ewq.data.windows import (
    DEFINITIONS,
    Definition,
    Window,
    bos_token,
    make_windows,
    window_notes,
)
from ewq.errors import MeasurementError
from ewq.measurement import Items, Json, Metric, TaskResult
from ewq.progress import NO_PROGRESS, Progress
from ewq.stats import clustered_ratio, clusters_of, quantile, share_stderr

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ewq.data.texts import TextSet
    from ewq.model import LanguageModel
    from ewq.tasks.table import Inputs

    Array = NDArray[np.float64]

TASK = "divergence"
DEFAULT_DEFINITION = DEFINITIONS["disjoint"].with_window(512)
_DELTA_P_PERCENTILES = (0.1, 1, 5, 10, 50, 90, 95, 99, 99.9)
_KLD_PERCENTILES = (50, 90, 95, 99)
# Rows compared at once; the comparison holds a little over two such blocks.
_BLOCK_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class _Tokens:
    """Per-token figures of some scored tokens, each ``[n]``."""

    kld: Array
    same_top: Array
    delta_p: Array
    nll_change: Array
    """``ln p(correct) - ln q(correct)``: positive where the model is worse."""


def record_reference(
    model: LanguageModel,
    texts: TextSet,
    folder: Path,
    definition: Definition = DEFAULT_DEFINITION,
    *,
    max_tokens_per_domain: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Reference:
    """Store the reference's log-probabilities of every scored token in a file in ``folder``.

    The file has no name there and goes when the reference is closed or the process ends.

    Raises:
        InputError: the disk has no room for ``4 * tokens * vocabulary`` bytes.
        MeasurementError: texts too short for a window, or the disk filled up meanwhile.
    """
    settings, windows = _protocol(model, texts, definition, max_tokens_per_domain)
    tokens = sum(window.scored for window in windows)
    progress.start("reference log-probabilities", tokens, "tokens")
    try:
        with ReferenceWriter(folder, tokens, model.info.vocab_size, settings) as writer:
            for window in windows:
                for block in model.logprobs(window.ids, window.start):
                    writer.append(block.to("cpu").numpy())
                    progress.advance(len(block))
    finally:
        progress.finish()
    return writer.reference


def measure(inputs: Inputs) -> TaskResult:
    """The tier's texts against the reference's recorded log-probabilities."""
    return run(
        inputs.model(),
        inputs.texts(),
        inputs.distributions(),
        max_tokens_per_domain=inputs.sizes.divergence_tokens,
        progress=inputs.progress,
    )


def run(
    model: LanguageModel,
    texts: TextSet,
    reference: Reference,
    definition: Definition = DEFAULT_DEFINITION,
    *,
    max_tokens_per_domain: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Compare ``model`` with a reference recorded on the same texts and definition.

    Metrics: ``kld_mean`` (nats), ``kld_p50 .. kld_p99``, ``top1_agreement``,
    ``rms_delta_p``, ``ln_ppl_ratio``. Items are one row per window: its ``domain``, scored
    ``tokens`` and ``document``, and sums over the tokens: ``kld``, ``same_top``,
    ``delta_p_squared`` and ``nll_change``.

    Raises:
        MeasurementError: other texts, definition or vocabulary than the reference's, or a
            divergence that is not finite.
    """
    settings, windows = _protocol(model, texts, definition, max_tokens_per_domain)
    _check_same(model, settings, reference)
    per_window = list(_compare_all(model, windows, reference, progress))
    whole = _concatenated(per_window)
    clusters = _token_clusters(windows)
    return TaskResult(
        task=TASK,
        settings=settings,
        metrics=_metrics(whole, clusters),
        items=_items(windows, per_window),
        notes=window_notes(texts, model.tokenizer, definition, model.info.context_length),
        side={
            "delta_p_percentiles": _percentiles(whole.delta_p, _DELTA_P_PERCENTILES),
            "kld_max": float(whole.kld.max()),
        },
    )


def _protocol(
    model: LanguageModel, texts: TextSet, definition: Definition, max_tokens: int | None
) -> tuple[dict[str, Json], tuple[Window, ...]]:
    fitted = definition.fit(model.info.context_length)
    windows = make_windows(texts, model.tokenizer, fitted, max_tokens)
    settings: dict[str, Json] = {
        **fitted.settings(),
        "bos_added": bos_token(model.tokenizer) is not None,
        "max_tokens_per_domain": max_tokens,
        "data": texts.digest,
    }
    return settings, windows


def _check_same(model: LanguageModel, settings: dict[str, Json], reference: Reference) -> None:
    for key in sorted({*settings, *reference.settings}):
        here, there = settings.get(key), reference.settings.get(key)
        if here != there:
            raise MeasurementError(
                f"reference log-probabilities were recorded with {key} {there!r}, not {here!r}"
            )
    if model.info.vocab_size != reference.vocab_size:
        raise MeasurementError(
            f"the model's vocabulary has {model.info.vocab_size} tokens, the reference's "
            f"{reference.vocab_size}: their distributions cannot be compared"
        )


def _compare_all(
    model: LanguageModel, windows: Sequence[Window], reference: Reference, progress: Progress
) -> Iterator[_Tokens]:
    progress.start("divergence", reference.tokens, "tokens")
    comparison = _Comparison(reference)
    try:
        for window in windows:
            parts: list[_Tokens] = []
            position = window.start
            for block in model.logprobs(window.ids, window.start):
                targets = window.ids[position : position + len(block)]
                parts += comparison.next(block, targets)
                position += len(block)
                progress.advance(len(block))
            yield _concatenated(parts)
    finally:
        progress.finish()


class _Comparison:
    """Compares a model's rows with the reference's, in order from the first.

    Works in the same three buffers throughout: with fresh ones for every block
    the C allocator's heap grew by 14 MB per block and gave none of it back.
    """

    def __init__(self, reference: Reference) -> None:
        import torch

        self._reference = reference
        self._row = 0
        self._rows = max(1, _BLOCK_BYTES // (4 * reference.vocab_size))
        shape = (self._rows, reference.vocab_size)
        self._base = np.empty(shape, dtype=np.float32)
        self._probability = torch.empty(shape)
        self._excluded = torch.empty(shape, dtype=torch.bool)

    def next(self, block: torch.Tensor, targets: Sequence[int]) -> Iterator[_Tokens]:
        """Figures of the next ``len(block)`` tokens; ``targets`` are those that followed."""
        self._follow(block)
        for begin in range(0, len(block), self._rows):
            end = min(begin + self._rows, len(block))
            base = self._base[: end - begin]
            self._reference.read_into(base, self._row)
            self._row += len(base)
            yield self._compare(base, block[begin:end], targets[begin:end])

    def _compare(
        self, base: NDArray[np.float32], q: torch.Tensor, targets: Sequence[int]
    ) -> _Tokens:
        """Figures of ``len(targets)`` tokens from both models' rows; ``base`` is overwritten."""
        import torch

        p = torch.from_numpy(base).to(q.device)
        correct = torch.tensor(targets, device=q.device)[:, None]
        p_correct = p.gather(1, correct)[:, 0].double()
        q_correct = q.gather(1, correct)[:, 0].double()
        same = (p.argmax(-1) == q.argmax(-1)).double()
        probability = torch.exp(p, out=self._probability[: len(p)])
        # What the reference excludes adds nothing, whatever the model says: 0 * inf is not 0.
        excluded = torch.eq(probability, 0, out=self._excluded[: len(p)])
        terms = p.sub_(q).mul_(probability).masked_fill_(excluded, 0.0)
        figures = (
            terms.sum(-1, dtype=torch.float64),
            same,
            q_correct.exp() - p_correct.exp(),
            p_correct - q_correct,
        )
        return _Tokens(*(figure.cpu().numpy() for figure in figures))

    def _follow(self, block: torch.Tensor) -> None:
        """Move the buffers to the model's device."""
        self._probability = self._probability.to(block.device)
        self._excluded = self._excluded.to(block.device)


def _concatenated(parts: Sequence[_Tokens]) -> _Tokens:
    columns = zip(*((t.kld, t.same_top, t.delta_p, t.nll_change) for t in parts), strict=True)
    return _Tokens(*(np.concatenate(column) for column in columns))


def _token_clusters(windows: Sequence[Window]) -> list[Hashable]:
    """A cluster label per scored token: its document, or its window where documents are few."""
    by_window = clusters_of([window.document for window in windows]) or range(len(windows))
    return [
        label
        for label, window in zip(by_window, windows, strict=True)
        for _ in range(window.scored)
    ]


def _metrics(tokens: _Tokens, clusters: list[Hashable]) -> dict[str, Metric]:
    if not np.all(np.isfinite(tokens.kld)):
        raise MeasurementError(
            f"{int(np.sum(~np.isfinite(tokens.kld)))} of {len(tokens.kld)} tokens have no finite "
            "divergence: the model gives probability 0, or NaN, where the reference does not"
        )
    return {
        "kld_mean": _mean(tokens.kld, clusters, "nats", False),
        **_kld_percentiles(tokens.kld),
        "top1_agreement": _agreement(tokens.same_top, clusters),
        "rms_delta_p": _root_mean_square(tokens.delta_p, clusters),
        "ln_ppl_ratio": _mean(tokens.nll_change, clusters, "nats", False),
    }


def _mean(values: Array, clusters: list[Hashable], unit: str, higher_is_better: bool) -> Metric:
    estimate = clustered_ratio(values, np.ones_like(values), clusters)
    return Metric(
        estimate.value, unit, higher_is_better, len(values), estimate.stderr, estimate.freedom
    )


def _agreement(same_top: Array, clusters: list[Hashable]) -> Metric:
    """The share of tokens; its error is never that of certainty, however alike the tokens are."""
    found = _mean(same_top, clusters, "fraction", True)
    least = share_stderr(int(same_top.sum()), len(same_top)) if found.value in (0.0, 1.0) else 0.0
    return replace(found, stderr=max(found.stderr or 0.0, least))


def _root_mean_square(values: Array, clusters: list[Hashable]) -> Metric:
    """``sqrt(mean x^2)``; its error is that of the mean square over twice the root."""
    square = _mean(values**2, clusters, "fraction", False)
    root = math.sqrt(square.value)
    stderr = None if square.stderr is None else square.stderr / (2 * root) if root else 0.0
    return Metric(root, "fraction", False, len(values), stderr, square.freedom)


def _kld_percentiles(kld: Array) -> dict[str, Metric]:
    metrics = {}
    for percent in _KLD_PERCENTILES:
        found = quantile(kld, percent / 100)
        metrics[f"kld_p{percent}"] = Metric(found.value, "nats", False, len(kld), found.stderr)
    return metrics


def _percentiles(values: Array, at: Sequence[float]) -> dict[str, Json]:
    return {f"p{q:g}": float(np.percentile(values, q)) for q in at}


def _items(windows: Sequence[Window], per_window: Sequence[_Tokens]) -> Items:
    return Items(
        {
            "domain": [window.domain for window in windows],
            "tokens": [window.scored for window in windows],
            "kld": [round(float(tokens.kld.sum()), 8) for tokens in per_window],
            "same_top": [int(tokens.same_top.sum()) for tokens in per_window],
            "delta_p_squared": [round(float((t.delta_p**2).sum()), 10) for t in per_window],
            "nll_change": [round(float(tokens.nll_change.sum()), 8) for tokens in per_window],
            "document": [window.document for window in windows],
        }
    )
