"""Tasks of lm-evaluation-harness: its prompts, filters and metrics over our models.

Items are a metric's value for each document. Of a metric that is no mean (perplexity, F1, BLEU)
they are the jackknife's pseudo-values ``G t - (G - 1) t_g``, ``t_g`` being the metric without a
document, or block ``g`` of them (Tukey 1958): their mean estimates it, their spread its error.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TypeVar

from ewq import stats
from ewq.data.lm_eval import Documents
from ewq.errors import InputError, MeasurementError
from ewq.files import content_key
from ewq.measurement import Items, Metric, TaskResult, require_same_settings
from ewq.model import LanguageModel
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.tasks.mmlu_scores import encode, encode_pairs
from ewq.tasks.table import Inputs

TASK = "lm_eval"
NEW_TOKENS = 256
"""Most tokens of an answer to a task that sets no limit, as in lm-eval."""
_BLOCKS = 200
"""Most parts without which a metric is computed anew."""
_NO_CHANGE = {"do_sample", "temperature", "top_p", "top_k", "min_p"}
"""What a task may say of sampling without changing what greedy decoding writes."""
_SHARED = ("versions", "documents", "prompts", "cut_to")
"""Settings, all of its own, that make two results comparable."""
_COLUMNS = ("metric", "document", "cluster", "value")
_PROMPTS, _ANSWERS = 16, 8
"""Prompts that a model is asked at a time to go on from, and to continue."""
_Ids = list[int]
_Member = TypeVar("_Member")


def measure(inputs: Inputs) -> TaskResult:
    """The tier's share of the documents."""
    most = inputs.sizes.lm_eval_documents
    documents = inputs.documents(inputs.task)
    return run(inputs.model(), documents, inputs.task, most=most, progress=inputs.progress)


def run(
    model: LanguageModel,
    documents: Documents,
    task: str = TASK,
    *,
    most: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> TaskResult:
    """Ask ``most`` documents or all; metrics are lm-eval's, ``NAME/FILTER`` behind a filter."""
    from lm_eval.evaluator import evaluate

    asked = documents.sample(most)
    tasks = {name: documents.tasks[name] for name in asked}
    documents.prepare()
    lm = Requests(model, progress)
    found = evaluate(lm=lm, task_dict={"tasks": tasks}, samples=asked, bootstrap_iters=0)["samples"]
    samples = [(f"{name}/{each['doc_id']}", each) for name in tasks for each in found[name]]
    metrics, items = _scores(tasks, samples)
    prompts = [[each[key] for key in ("target_hash", "arguments")] for _, each in samples]
    cut = f"{lm.cut} texts exceed the context and lost their beginning, as in lm-eval"
    return TaskResult(
        task=task,
        settings={
            "versions": {name: str(each.VERSION) for name, each in tasks.items()},
            "documents": sum(map(len, asked.values())),
            "prompts": content_key(prompts),
            "cut_to": model.info.context_length if lm.cut or lm.split else None,
        },
        metrics=metrics,
        items=items,
        notes=(cut,) * bool(lm.cut),
        side={
            "responses": [
                [name, each["filter"], *each["filtered_resps"]]
                for name, each in samples
                if isinstance(each["filtered_resps"][0], str)
            ]
        },
    )


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """``delta/METRIC`` document by document; ``flips/`` and ``mcnemar_p/`` of rights and wrongs."""
    require_same_settings(TASK, result.settings, reference.settings, _SHARED)
    ours, theirs = (_by_document(each.items) for each in (result, reference))
    metrics: dict[str, Metric] = {}
    for name, now in result.metrics.items():
        both = [key for key in ours if key[0] == name and key in theirs]
        if name not in reference.metrics or not both:
            continue
        new, old = ([of[key][0] for key in both] for of in (ours, theirs))
        labels, n = [ours[key][1] for key in both], len(both)
        differences = [a - b for a, b in zip(new, old, strict=True)]
        units = (now.unit, now.higher_is_better)
        delta = stats.paired_mean(differences, [1] * n, stats.clusters_of(labels), *units)
        if {*new, *old} <= {0.0, 1.0}:
            found = stats.paired_answers(old, new, labels)
            delta = replace(found.delta, unit=now.unit, higher_is_better=now.higher_is_better)
            metrics |= {f"flips/{name}": found.flips, f"mcnemar_p/{name}": found.mcnemar_p}
        value = now.value - reference.metrics[name].value
        metrics[f"delta/{name}"] = replace(delta, value=value)
    return metrics


def _by_document(items: Items) -> dict[tuple[str, str], tuple[float, str]]:
    """Metric and document -> value and cluster."""
    rows = zip(*map(items.column, _COLUMNS), strict=True)
    return {(metric, document): (value, cluster) for metric, document, cluster, value in rows}


def _scores(
    tasks: Mapping[str, Any], samples: Sequence[tuple[str, Any]]
) -> tuple[dict[str, Metric], Items]:
    """Every metric over the documents that have it, and their parts in it."""
    from lm_eval.api.metrics import mean

    metrics: dict[str, Metric] = {}
    rows: list[tuple[str, str, str, float]] = []
    kinds = dict.fromkeys((key, each["filter"]) for _, each in samples for key in each["metrics"])
    for key, behind in kinds:
        own = [(at, each[key]) for at, each in samples if each["filter"] == behind and key in each]
        names, values = ([each[part] for each in own] for part in (0, 1))
        task = tasks[names[0].rpartition("/")[0]]
        whole, parts, clusters = jackknife(values, task.aggregation().get(key, mean), mean)
        clusters = clusters or [name.rpartition("/")[0] for name in names]
        name = key if behind == "none" else f"{key}/{behind}"
        metrics[name] = _metric(name, whole, parts, clusters, task.higher_is_better().get(key))
        rows += zip([name] * len(own), names, clusters, parts, strict=True)
    columns = zip(*rows, strict=True) if rows else [()] * len(_COLUMNS)
    return metrics, Items({name: list(own) for name, own in zip(_COLUMNS, columns, strict=True)})


def jackknife(
    values: list[Any], aggregate: Callable[[list[Any]], Any], mean: Callable[[list[Any]], Any]
) -> tuple[float, list[float], list[str]]:
    """An aggregate, each value's part in it, and blocks of them; none under a mean, or of one."""
    whole, n = float(aggregate(values)), len(values)
    blocks = min(n, _BLOCKS)
    if aggregate is mean or n < 2:
        return whole, [float(each) for each in values] if aggregate is mean else [whole], []
    of = [place * blocks // n for place in range(n)]
    without = [
        float(aggregate([each for each, own in zip(values, of, strict=True) if own != block]))
        for block in range(blocks)
    ]
    parts = [blocks * whole - (blocks - 1) * without[block] for block in of]
    return whole, parts, [str(block) for block in of]


def _metric(
    name: str, whole: float, parts: list[float], clusters: list[str], higher: bool | None
) -> Metric:
    """With an error over documents, over the tasks of a group, or over blocks."""
    n = len(parts)
    found = stats.clustered_ratio(parts, [1] * n, stats.clusters_of(clusters))
    unit, stderr = "ratio" if "perplexity" in name else "score", found.stderr
    if {*parts} <= {0.0, 1.0}:
        unit, stderr = "fraction", stats.clustered_share_stderr(stderr, int(sum(parts)), n)
    return Metric(whole, unit, higher, n, stderr, found.freedom)


class Requests:
    """What lm-eval calls a model: its three kinds of requests, answered by any of our engines.

    Log-likelihoods, windows and stop strings are those of lm-eval's own ``hf`` backend.
    """

    rank, world_size = 0, 1

    def __init__(self, model: LanguageModel, progress: Progress = NO_PROGRESS) -> None:
        self.cut = 0
        """How many texts were too long for the context."""
        self.split = False
        """Whether a text was read in several windows."""
        self._model, self._progress = model, progress
        self._tokenizer: Any = model.tokenizer
        self._context = model.info.context_length
        bos = getattr(self._tokenizer, "bos_token_id", None)
        self._first: int = self._tokenizer.eos_token_id if bos is None else bos

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each continuation, in nats, and whether greedy decoding would have written it."""
        pairs = [request.args for request in requests]
        heads, tails = ([pair[part] for pair in pairs if pair[0]] for part in (0, 1))
        joint = encode_pairs(self._tokenizer, heads, tails) if heads else ([], [])
        encoded = zip(*joint, strict=True)
        return self._scored([next(encoded) if head else self._alone(tail) for head, tail in pairs])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each whole text, in windows of the context of which each token is in one."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[_Ids, _Ids]] = []
        ends = []
        for ids in encode(self._tokenizer, [request.args[0] for request in requests]):
            made = get_rolling_token_windows(ids, self._first, self._context, context_len=1)
            windows += map(make_disjoint_window, made)
            ends.append(len(windows))
            self.split |= len(ids) > self._context
        scores = [score for score, _ in self._scored(windows)]
        return [sum(scores[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy continuation of each prompt up to a stop string, end of text or its limit."""
        texts = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[tuple[_Ids, int]]] = {}
        for place, ids in enumerate(encode(self._tokenizer, [each.args[0] for each in requests])):
            limit, stops = self._asked(requests[place].args[1])
            groups.setdefault((limit, stops), []).append((self._fitting(ids, -limit), place))
        with step(self._progress, "lm-eval, answers", len(requests), "documents") as advance:
            for asked, members in groups.items():
                for own in _batches(sorted(members, key=lambda each: -len(each[0])), _ANSWERS):
                    written = self._written([prompt for prompt, _ in own], *asked)
                    for (_, place), text in zip(own, written, strict=True):
                        texts[place] = text
                    advance(len(own))
        return texts

    def _alone(self, text: str) -> tuple[_Ids, _Ids]:
        """A continuation of nothing, as lm-eval scores one."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self._first] else ([self._first], ids)

    def _fitting(self, ids: _Ids, more: int) -> _Ids:
        """The end of a prompt for which the context has its length and ``more`` tokens."""
        room = self._context + more
        if room < 1:
            fills = f"an answer of {-more} tokens leaves a context of {self._context}"
            raise MeasurementError(f"lm-eval: {fills} no room for its prompt")
        self.cut += len(ids) > room
        return ids[-room:] or [self._first]

    def _scored(self, pairs: Sequence[tuple[_Ids, _Ids]]) -> list[tuple[float, bool]]:
        """Continuations of the same prompt together, which is then computed once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (head, tail) in enumerate(pairs):
            # The last token is only predicted, never fed.
            groups.setdefault(tuple(self._fitting(head, 1 - len(tail))), []).append(place)
        found = [(0.0, False)] * len(pairs)
        with step(self._progress, "lm-eval, likelihoods", len(pairs), "texts") as advance:
            # Prompts of one length are worked on together.
            for own in _batches(sorted(groups, key=lambda prompt: -len(prompt)), _PROMPTS):
                asked = [(prompt, [pairs[place][1] for place in groups[prompt]]) for prompt in own]
                if not all(tail for _, tails in asked for tail in tails):
                    raise MeasurementError("lm-eval: a continuation has no token of its own")
                places = [place for prompt in own for place in groups[prompt]]
                scores = chain.from_iterable(self._model.continuation_scores(asked))
                for place, score in zip(places, scores, strict=True):
                    total = float(score[:, 0].sum(dtype="float64"))
                    if not math.isfinite(total):
                        broken = "the model's output is broken"
                        raise MeasurementError(f"lm-eval: a likelihood of exp({total}): {broken}")
                    found[place] = (total, bool(score[:, 1].all()))
                advance(len(places))
        return found

    def _asked(self, wishes: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """Most new tokens, and the strings that end an answer."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        found: dict[str, Any] = dict(normalize_gen_kwargs(dict(wishes), NEW_TOKENS))
        end = self._tokenizer.decode([self._tokenizer.eos_token_id], skip_special_tokens=False)
        stops: list[str] = handle_stop_sequences(found.pop("until", None), eos=end)
        limit = int(found.pop("max_gen_toks"))
        others = ["sampling"] * bool(found["do_sample"]) + sorted(found.keys() - _NO_CHANGE)
        if others:
            named = ", ".join(others)
            raise InputError(f"the lm-eval task asks for {named}: ewq only decodes greedily")
        return limit, tuple(stops)

    def _written(self, prompts: list[_Ids], limit: int, stops: tuple[str, ...]) -> list[str]:
        from lm_eval.models.utils import postprocess_generated_text

        ends = end_tokens(self._tokenizer)

        def text(tokens: Sequence[int]) -> str:
            kept = list(takewhile(lambda token: token not in ends, tokens))
            return str(self._tokenizer.decode(kept, skip_special_tokens=True))

        def over(rows: list[_Ids]) -> bool:
            return all(
                not ends.isdisjoint(row) or any(stop in text(row) for stop in stops) for row in rows
            )

        rows = self._model.generate(prompts, limit, over).tokens
        return [postprocess_generated_text(text(row), list(stops), None) for row in rows]


def _batches(members: Sequence[_Member], size: int) -> Iterator[Sequence[_Member]]:
    for begin in range(0, len(members), size):
        yield members[begin : begin + size]


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generations."""
    file = Path(str(getattr(tokenizer, "name_or_path", ""))) / "generation_config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = stored.get("eos_token_id")
    several = known if isinstance(known, list) else [known]
    return frozenset(token for token in (tokenizer.eos_token_id, *several) if token is not None)
