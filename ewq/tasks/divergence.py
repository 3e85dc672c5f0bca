"""How far a model's next-token distributions are from the reference's, on the same tokens.

Per scored token, with ``p`` the reference's and ``q`` the model's distribution:
``KLD = sum_v p_v (ln p_v - ln q_v)``, top-1 agreement (same most likely token), and
``delta_p = q(correct) - p(correct)``: llama-perplexity's definitions, but nothing is rounded, no
tail is cut off, and errors are clustered by document.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ewq.data.reference_logprobs import Reference, write_reference
from ewq.data.windows import SHORT, Definition, Window, fitted_windows, window_notes
from ewq.errors import MeasurementError
from ewq.measurement import Items, Metric, TaskResult, require_same_settings
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.stats import clustered_ratio, clustered_share_stderr, clusters_of, quantile

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ewq.data.texts import TextSet
    from ewq.model import LanguageModel
    from ewq.tasks.table import Inputs

    Array = NDArray[np.float64]

TASK = "divergence"
_DELTA_P_PERCENTILES = (0.1, 1, 5, 10, 50, 90, 95, 99, 99.9)
# Rows compared at once; the comparison holds a little over two such blocks.
_BLOCK_BYTES = 16 * 1024**2


def record_reference(
    model: LanguageModel,
    texts: TextSet,
    folder: Path,
    definition: Definition = SHORT,
    *,
    max_tokens_per_domain: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Reference:
    """Store the reference's log-probabilities of every scored token on the disk of ``folder``."""
    settings, windows = fitted_windows(model, texts, definition, max_tokens_per_domain)
    tokens = sum(window.scored for window in windows)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for window in windows:
            for block in model.logprobs(window.ids, window.start):
                yield block.to("cpu").numpy()
                advance(len(block))

    with step(progress, "reference log-probabilities", tokens, "tokens") as advance:
        return write_reference(folder, tokens, model.info.vocab_size, settings, blocks())


def measure(inputs: Inputs) -> TaskResult:
    """The tier's texts against the reference's recorded log-probabilities."""
    return run(
        inputs.model(),
        inputs.texts(),
        inputs.distributions(),
        max_tokens_per_domain=inputs.sizes.divergence_tokens,
        window_nll=inputs.window_nll,
        progress=inputs.progress,
    )


def run(
    model: LanguageModel,
    texts: TextSet,
    reference: Reference,
    definition: Definition = SHORT,
    *,
    max_tokens_per_domain: int | None = None,
    window_nll: dict[Window, float] | None = None,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Compare ``model`` with a reference recorded on the same texts, definition and vocabulary.

    Items are windows, with sums over their tokens; ``window_nll`` takes the likelihoods on the way.
    What cannot be compared, or is not finite, is a MeasurementError.
    """
    settings, windows = fitted_windows(model, texts, definition, max_tokens_per_domain)
    require_same_settings(TASK, settings, reference.settings)
    # Rows that only pad a vocabulary take probability that the reference never gives.
    if model.info.vocab_size < reference.vocab_size:
        raise MeasurementError(
            f"the model's vocabulary has {model.info.vocab_size} tokens, the reference's "
            f"{reference.vocab_size}: their distributions cannot be compared"
        )
    per_window = list(_compare_all(model, windows, reference, progress))
    if window_nll is not None:
        sums = (float(tokens[:, 4].sum()) for tokens in per_window)
        window_nll.update(zip(windows, sums, strict=True))
    whole = np.concatenate(per_window)
    percentiles = np.percentile(whole[:, 2], _DELTA_P_PERCENTILES).tolist()
    named = zip(_DELTA_P_PERCENTILES, percentiles, strict=True)
    return TaskResult(
        task=TASK,
        settings=settings,
        metrics=_metrics(whole, _token_clusters(windows)),
        items=_items(windows, per_window),
        notes=window_notes(texts, model.tokenizer, definition, model.info.context_length),
        side={
            "delta_p_percentiles": {f"p{percent:g}": value for percent, value in named},
            "kld_max": float(whole[:, 0].max()),
        },
    )


def _compare_all(
    model: LanguageModel, windows: Sequence[Window], reference: Reference, progress: Progress
) -> Iterator[Array]:
    """Figures of each window's scored tokens, ``[tokens, 5]`` (see :func:`_compare`)."""
    import torch

    # The same buffers throughout: of fresh ones the C allocator's heap kept 14 MB a block.
    rows = max(1, _BLOCK_BYTES // (4 * reference.vocab_size))
    base = np.empty((rows, reference.vocab_size), dtype=np.float32)
    buffers = torch.empty(base.shape), torch.empty(base.shape, dtype=torch.bool)
    row = 0
    with step(progress, "divergence", reference.tokens, "tokens") as advance:
        for window in windows:
            parts: list[Array] = []
            targets = iter(window.ids[window.start :])
            for block in model.logprobs(window.ids, window.start):
                buffers = buffers[0].to(block.device), buffers[1].to(block.device)
                for q in torch.split(block, rows):
                    reference.read_into(base[: len(q)], row)
                    row += len(q)
                    correct = list(islice(targets, len(q)))
                    parts.append(_compare(base[: len(q)], q, correct, *buffers))
                advance(len(block))
            yield np.concatenate(parts)


def _compare(
    base: NDArray[np.float32],
    q: torch.Tensor,
    targets: Sequence[int],
    probability: torch.Tensor,
    excluded: torch.Tensor,
) -> Array:
    """KLD, equality of the most likely token, ``delta_p``, ``ln p(correct) - ln q(correct)``, and
    ``-ln q(correct)``.

    The fourth is positive where the model is worse. ``base``, the reference's rows, is overwritten,
    as are the buffers ``probability`` and ``excluded``.
    """
    import torch

    p = torch.from_numpy(base).to(q.device)
    correct = torch.tensor(targets, device=q.device)[:, None]
    p_correct = p.gather(1, correct)[:, 0].double()
    q_correct = q.gather(1, correct)[:, 0].double()
    same = (p.argmax(-1) == q.argmax(-1)).double()
    q = q[:, : p.shape[1]]
    probability = torch.exp(p, out=probability[: len(p)])
    # What the reference excludes adds nothing, whatever the model says: 0 * inf is not 0.
    excluded = torch.eq(probability, 0, out=excluded[: len(p)])
    kld = p.sub_(q).mul_(probability).masked_fill_(excluded, 0.0).sum(-1, dtype=torch.float64)
    figures = (kld, same, q_correct.exp() - p_correct.exp(), p_correct - q_correct, -q_correct)
    array: Array = torch.stack(figures, dim=1).cpu().numpy()
    return array


def _token_clusters(windows: Sequence[Window]) -> list[Hashable]:
    """A cluster label per scored token: its document, or its window where documents are few."""
    by_window = clusters_of([window.document for window in windows]) or range(len(windows))
    return [
        label
        for label, window in zip(by_window, windows, strict=True)
        for _ in range(window.scored)
    ]


def _metrics(tokens: Array, clusters: list[Hashable]) -> dict[str, Metric]:
    kld, same_top, delta_p, nll_change = tokens.T[:4]
    if broken := int(np.sum(~np.isfinite(kld))):
        raise MeasurementError(
            f"{broken} of {len(kld)} tokens have no finite divergence: the model gives "
            "probability 0, or NaN, where the reference does not"
        )
    metrics = {"kld_mean": _mean(kld, clusters, "nats", False)}
    for percent in (50, 90, 95, 99):
        value, stderr = quantile(kld, percent / 100)
        metrics[f"kld_p{percent}"] = Metric(value, "nats", False, len(kld), stderr)
    agreement = _mean(same_top, clusters, "fraction", True)
    stderr = clustered_share_stderr(agreement.stderr, int(same_top.sum()), len(same_top))
    return metrics | {
        "top1_agreement": replace(agreement, stderr=stderr),
        "rms_delta_p": _root_mean_square(delta_p, clusters),
        "ln_ppl_ratio": _mean(nll_change, clusters, "nats", False),
    }


def _mean(values: Array, clusters: list[Hashable], unit: str, better: bool) -> Metric:
    found = clustered_ratio(values, np.ones_like(values), clusters)
    return Metric(found.value, unit, better, len(values), found.stderr, found.freedom)


def _root_mean_square(values: Array, clusters: list[Hashable]) -> Metric:
    """``sqrt(mean x^2)``; its error is that of the mean square over twice the root."""
    square = _mean(values**2, clusters, "fraction", False)
    root = math.sqrt(square.value)
    stderr = None if square.stderr is None else square.stderr / (2 * root) if root else 0.0
    return replace(square, value=root, stderr=stderr)


def _items(windows: Sequence[Window], per_window: Sequence[Array]) -> Items:
    sums = np.array([tokens.sum(axis=0) for tokens in per_window])
    squares = [float((tokens[:, 2] ** 2).sum()) for tokens in per_window]
    return Items(
        {
            "domain": [window.domain for window in windows],
            "tokens": [window.scored for window in windows],
            "kld": sums[:, 0].round(8).tolist(),
            "same_top": sums[:, 1].astype(int).tolist(),
            "delta_p_squared": [round(square, 10) for square in squares],
            "nll_change": sums[:, 3].round(8).tolist(),
            "document": [window.document for window in windows],
        }
    )
