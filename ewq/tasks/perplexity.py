"""Perplexity and bits per byte, per domain and overall.

With scored tokens ``t`` and natural logarithms: ``perplexity = exp(-sum ln p_t / tokens)``,
``bits per byte = -sum ln p_t / (ln 2 * bytes)`` over the bytes of the scored tokens' text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from ewq.data.texts import TextSet
from ewq.data.windows import Definition, Window, fitted_windows, window_notes
from ewq.errors import MeasurementError
from ewq.measurement import Items, Metric, TaskResult, require_same_settings
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.stats import clustered_ratio, clusters_of, paired_mean
from ewq.tasks.table import Inputs

TASK = "perplexity"
NOTHING: Mapping[Window, float] = {}


def measure(inputs: Inputs) -> TaskResult:
    """The tier's texts under the definition that is usual for them."""
    return run(
        inputs.model(),
        inputs.texts(),
        inputs.definition(),
        max_tokens_per_domain=inputs.sizes.text_tokens,
        known=inputs.window_nll,
        progress=inputs.progress,
    )


def run(
    model: LanguageModel,
    texts: TextSet,
    definition: Definition,
    *,
    max_tokens_per_domain: int | None = None,
    known: Mapping[Window, float] = NOTHING,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Score ``texts`` under one definition of perplexity; ``known`` windows (nats) are not run.

    Both metrics also per domain, as ``perplexity/DOMAIN``; standard errors are clustered by
    document (by window where a scope has fewer than four). Items are windows, ``nll`` in nats.
    """
    settings, windows = fitted_windows(model, texts, definition, max_tokens_per_domain)
    items = Items(
        {
            "domain": [window.domain for window in windows],
            "nll": list(_score(model, windows, known, progress)),
            "tokens": [window.scored for window in windows],
            "bytes": [window.scored_bytes for window in windows],
            "document": [window.document for window in windows],
        }
    )
    return TaskResult(
        task=TASK,
        settings=settings,
        metrics=_metrics(items),
        items=items,
        notes=window_notes(texts, model.tokenizer, definition, model.info.context_length),
    )


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """``ln_ppl_ratio``, overall and per domain, against the reference on the same windows."""
    require_same_settings(TASK, result.settings, reference.settings)
    new, base = result.items, reference.items
    if new.column("tokens") != base.column("tokens"):
        raise MeasurementError("perplexities are not comparable: their windows differ")
    metrics = {"ln_ppl_ratio": _ln_ratio(new, base)}
    for domain in dict.fromkeys(base.column("domain")):
        metrics[f"ln_ppl_ratio/{domain}"] = _ln_ratio(_within(new, domain), _within(base, domain))
    return metrics


def _score(
    model: LanguageModel,
    windows: Sequence[Window],
    known: Mapping[Window, float],
    progress: Progress,
) -> Iterator[float]:
    tokens = sum(window.scored for window in windows)
    with step(progress, "perplexity", tokens, "tokens") as advance:
        for window in windows:
            nll = known.get(window)
            if nll is None:
                # One by one, as where they become known: batches can move the figures of int8.
                prefix, suffix = window.ids[: window.start], window.ids[window.start :]
                nll = -float(model.token_logprobs(prefix, [suffix])[0].sum(dtype="float64"))
            if not math.isfinite(nll):
                where = f"a token of document {window.document} ({window.domain})"
                raise MeasurementError(f"{where} has a likelihood of exp({-nll}): a broken model")
            # Hundred-thousandths keep records small and figures exact to 1e-6.
            yield round(nll, 5)
            advance(window.scored)


def _metrics(items: Items) -> dict[str, Metric]:
    metrics = _figures(items)
    for domain in dict.fromkeys(items.column("domain")):
        for name, metric in _figures(_within(items, domain)).items():
            metrics[f"{name}/{domain}"] = metric
    return metrics


def _figures(items: Items) -> dict[str, Metric]:
    """Perplexity with the delta method's error, and bits per byte."""
    nll, tokens = items.column("nll"), items.column("tokens")
    clusters, scored = clusters_of(items.column("document")), sum(tokens)
    nats = clustered_ratio(nll, tokens, clusters)
    per_byte = clustered_ratio(nll, items.column("bytes"), clusters)
    perplexity, bits = math.exp(nats.value), per_byte.value / math.log(2)
    errors = _scaled(nats.stderr, perplexity), _scaled(per_byte.stderr, 1 / math.log(2))
    return {
        "perplexity": Metric(perplexity, "ratio", False, scored, errors[0], nats.freedom),
        "bits_per_byte": Metric(bits, "bits", False, scored, errors[1], per_byte.freedom),
    }


def _ln_ratio(new: Items, base: Items) -> Metric:
    tokens, clusters = base.column("tokens"), clusters_of(base.column("document"))
    changes = [b - a for a, b in zip(base.column("nll"), new.column("nll"), strict=True)]
    return paired_mean(changes, tokens, clusters, "nats", False)


def _scaled(stderr: float | None, factor: float) -> float | None:
    return None if stderr is None else stderr * factor


def _within(items: Items, domain: str) -> Items:
    kept = [index for index, name in enumerate(items.column("domain")) if name == domain]
    return Items({name: [column[i] for i in kept] for name, column in items.columns.items()})
