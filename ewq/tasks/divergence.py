"""How far a model's next-token distributions are from the reference's, on the same tokens.

Per scored token, with ``p`` the reference's and ``q`` the model's distribution:
``KLD = sum_v p_v (ln p_v - ln q_v)``, top-1 agreement (same most likely token), and
``delta_p = q(correct) - p(correct)``: llama-perplexity's definitions, but nothing is rounded, no
tail is cut off, and errors are clustered by document.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ewq.data.distributions import Head, Reference, open_reference
from ewq.data.texts import TextSet
from ewq.data.windows import SHORT, Definition, Window, fitted_windows, window_notes
from ewq.errors import MeasurementError
from ewq.measurement import Items, Json, Metric, TaskResult
from ewq.model import LanguageModel, TokenIds
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.stats import clustered_ratio, clustered_share_stderr, clusters_of, quantile
from ewq.tasks.table import Inputs

Array = NDArray[np.float64]
TASK = "divergence"
_DELTA_P_PERCENTILES = (0.1, 1, 5, 10, 50, 90, 95, 99, 99.9)
_CONFIDENCES = {
    "": (0.0, math.inf),
    "/below_50": (0.0, 0.5),
    "/50_to_90": (0.5, 0.9),
    "/from_90": (0.9, math.inf),
}
"""Ranges of the reference's largest probability, in percent."""
EXACT_NATS = 1e-6
"""Least divergence from itself at which hidden states do not stand for a model's distributions."""
_TRIED_TOKENS = 16


def record_reference(
    model: LanguageModel,
    texts: TextSet,
    folder: Path,
    definition: Definition = SHORT,
    *,
    max_tokens_per_domain: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Reference:
    """Store the reference's distributions of every scored token on the disk of ``folder``.

    They are compared with the model's on the way, which spares :func:`run` a pass of its own.
    """
    settings, windows = fitted_windows(model, texts, definition, max_tokens_per_domain)
    reference = record_windows(model, settings, windows, folder, progress)
    notes = window_notes(texts, model.tokenizer, definition, model.info.context_length)
    return replace(reference, notes=notes)


def record_windows(
    model: LanguageModel,
    settings: Mapping[str, Json],
    windows: Sequence[Window],
    folder: Path,
    progress: Progress = NO_PROGRESS,
) -> Reference:
    """The same of windows that are known."""
    tokens = sum(window.scored for window in windows)
    head = working_head(model, windows[0])
    with ExitStack() as on_failure, step(progress, "reference", tokens, "tokens") as advance:
        reference = open_reference(folder, windows, model.info, settings, head)
        on_failure.callback(reference.close)
        for window in windows:
            parts: list[Array] = []
            for logprobs, *stored in _blocks(model, window.ids, window.start, head):
                begin = reference.rows.count
                reference.append(*stored)
                parts.append(_compare(reference, begin, logprobs, window, parts))
                advance(len(logprobs))
            reference.own.append(np.concatenate(parts))
        if reference.rows.count != tokens:
            raise MeasurementError(f"the reference has {reference.rows.count} rows, not {tokens}")
        on_failure.pop_all()
    return reference


def working_head(model: LanguageModel, window: Window) -> Head | None:
    """The model's head, if it makes the model's distributions of a few hidden states."""
    head: Head | None = getattr(model, "head", None)
    if head is None:
        return None
    ids = window.ids[: window.start + _TRIED_TOKENS]
    for logprobs, hidden, norms in _blocks(model, ids, window.start, head):
        again = head.logits(hidden, slice(None)).float() - norms[:, None]
        if again.shape != logprobs.shape:
            return None
        kld = (logprobs.exp() * (logprobs - again)).nansum(-1)
        if not bool((kld.abs() < EXACT_NATS).all()):
            return None
    return head


def _blocks(model: Any, ids: TokenIds, start: int, head: Head | None) -> Iterator[Any]:
    """Blocks of distributions, what to store of them, and the normalisers of hidden states."""
    if head is None:
        return ((block, block, None) for block in model.logprobs(ids, start))
    states: Iterator[Any] = model.states(ids, start)
    return states


def record(inputs: Inputs, folder: Path) -> Reference:
    """The reference's distributions on the tier's texts."""
    most, model, texts = inputs.sizes.divergence_tokens, inputs.model(), inputs.texts()
    return record_reference(
        model, texts, folder, max_tokens_per_domain=most, progress=inputs.progress
    )


def measure(inputs: Inputs) -> TaskResult:
    """What the reference recorded for the task that runs, against the model's distributions."""
    reference, known = inputs.distributions(inputs.task), inputs.window_nll
    return run(inputs.model(), reference, inputs.task, window_nll=known, progress=inputs.progress)


def run(
    model: LanguageModel,
    reference: Reference,
    task: str = TASK,
    *,
    window_nll: dict[Window, float] | None = None,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Compare ``model`` with a reference of the same token ids, on the windows it recorded.

    Items are windows, with sums over their tokens; ``window_nll`` takes the likelihoods on the way.
    What cannot be compared, or is not finite, is a MeasurementError.
    """
    # Rows that only pad a vocabulary take probability that the reference never gives.
    if model.info.vocab_size < reference.source.vocab_size:
        ours, theirs = model.info.vocab_size, reference.source.vocab_size
        raise MeasurementError(f"vocabularies of {ours} and {theirs} tokens cannot be compared")
    itself, windows = model.info is reference.source, reference.windows
    per_window = reference.own if itself else list(_compare_all(model, reference, progress))
    if window_nll is not None:
        sums = (float(tokens[:, 4].sum()) for tokens in per_window)
        window_nll.update(zip(windows, sums, strict=True))
    whole = np.concatenate(per_window)
    percentiles = np.percentile(whole[:, 2], _DELTA_P_PERCENTILES).tolist()
    named = zip(_DELTA_P_PERCENTILES, percentiles, strict=True)
    return TaskResult(
        task=task,
        settings=reference.settings,
        metrics=_metrics(whole, _token_clusters(windows)),
        items=_items(windows, per_window),
        notes=reference.notes,
        side={
            "delta_p_percentiles": {f"p{percent:g}": value for percent, value in named},
            "kld_max": float(whole[:, 0].max()),
        },
    )


def _compare_all(model: LanguageModel, reference: Reference, progress: Progress) -> Iterator[Array]:
    """Figures of each window's scored tokens, ``[tokens, 6]`` (see :func:`_compare`)."""
    row = 0
    with step(progress, "divergence", reference.rows.count, "tokens") as advance:
        for window in reference.windows:
            parts: list[Array] = []
            for block in model.logprobs(window.ids, window.start):
                reference = reference.on(block.device)
                parts.append(_compare(reference, row, block, window, parts))
                row += len(block)
                advance(len(block))
            yield np.concatenate(parts)


def _compare(
    reference: Reference, row: int, q: torch.Tensor, window: Window, before: Sequence[Array]
) -> Array:
    """KLD, equality of the most likely token, ``delta_p``, change of nll, nll, and confidence.

    The change is ``ln p(correct) - ln q(correct)``, positive where the model is worse; confidence
    is the reference's largest probability. ``q`` stands for rows of the reference from ``row`` on
    and follows what was compared ``before`` of its window.
    """
    first = window.start + sum(map(len, before))
    correct = torch.tensor(window.ids[first : first + len(q)], device=q.device)
    kld, p_correct = q.new_zeros((2, len(q)), dtype=torch.float64)
    best, top = q.new_full((len(q),), -math.inf), torch.zeros_like(correct)
    for rows, columns, p in reference.parts(row, len(q), q.device):
        highest, place = p.max(-1)
        better = highest > best[rows]
        best[rows] = torch.where(better, highest, best[rows])
        top[rows] = torch.where(better, place + columns.start, top[rows])
        own = correct[rows] - columns.start
        found = p.gather(1, own.clamp(0, p.shape[1] - 1)[:, None])[:, 0]
        p_correct[rows] += torch.where((own >= 0) & (own < p.shape[1]), found, 0.0)
        probability = p.exp()
        gap = p.sub_(q[rows, columns]).mul_(probability)
        total = gap.sum(-1)
        if not total.isfinite().all():
            # What the reference excludes adds nothing, whatever the model says: 0 * inf is not 0.
            total = gap.masked_fill_(probability == 0, 0.0).sum(-1)
        kld[rows] += total
    q_correct = q.gather(1, correct[:, None])[:, 0].double()
    same, change = (top == q.argmax(-1)).double(), p_correct - q_correct
    delta_p, confidence = q_correct.exp() - p_correct.exp(), best.double().exp()
    figures = (kld, same, delta_p, change, -q_correct, confidence)
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
    kld, same_top, delta_p, nll_change, _, confidence = tokens.T
    if broken := int(np.sum(~np.isfinite(kld))):
        why = "probability 0, or NaN, where the reference has none of them"
        raise MeasurementError(f"{broken} of {len(kld)} tokens have no finite divergence: {why}")
    metrics = {"kld_mean": _mean(kld, clusters, "nats", False)}
    for percent in (50, 90, 95, 99, 99.9):
        value, stderr = quantile(kld, percent / 100)
        name = f"kld_p{percent:g}".replace(".", "")
        metrics[name] = Metric(value, "nats", False, len(kld), stderr)
    for name, (least, below) in _CONFIDENCES.items():
        if any(chosen := (least <= confidence) & (confidence < below)):
            metrics[f"top1_agreement{name}"] = _agreement(same_top[chosen], clusters, chosen)
    return metrics | {
        "rms_delta_p": _root_mean_square(delta_p, clusters),
        "ln_ppl_ratio": _mean(nll_change, clusters, "nats", False),
    }


def _agreement(same_top: Array, clusters: Sequence[Hashable], chosen: NDArray[np.bool_]) -> Metric:
    own = list(compress(clusters, chosen))
    mean = _mean(same_top, own, "fraction", True)
    stderr = clustered_share_stderr(mean.stderr, int(same_top.sum()), len(same_top))
    return replace(mean, stderr=stderr)


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
