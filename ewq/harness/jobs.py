"""The table of tasks: how each is run on a variant, and how it is paired with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ewq.measurement import Metric, TaskResult

if TYPE_CHECKING:
    from ewq.harness.bench import Bench
    from ewq.harness.handle import VariantHandle

Pair = Callable[[TaskResult, TaskResult], Mapping[str, Metric]]


@dataclass(frozen=True)
class Work:
    """One task on one variant, ready to be timed by pytest-benchmark."""

    once: Callable[[], object]
    """One timed round. It ends only when the device has finished."""
    result: Callable[[], TaskResult]
    """The outcome, after all rounds."""
    rounds: int = 1
    warmup_rounds: int = 0


@dataclass(frozen=True)
class Job:
    """A task of the harness."""

    prepare: Callable[[Bench, VariantHandle], Work]
    pair: Pair | None = None
    same_session: bool = False
    """Whether the reference must be measured in this session: clocks drift between runs."""
    on_random_weights: bool = False
    """Whether the values of the weights do not matter to it."""


def _single(
    run: Callable[[Bench, VariantHandle], TaskResult], data: str = ""
) -> Callable[..., Work]:
    """A task of one round, whose return value is the result; ``data``: what it reads."""

    def prepare(bench: Bench, handle: VariantHandle) -> Work:
        # Loading and reading data stay outside the stopwatch.
        handle.load()
        if data:
            getattr(bench, data)
        outcome: list[TaskResult] = []
        return Work(lambda: outcome.append(run(bench, handle)), lambda: outcome[-1])

    return prepare


def _mmlu(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import mmlu

    return mmlu.run(handle.model, bench.mmlu, progress=bench.progress)


def _pair_mmlu(result: TaskResult, reference: TaskResult) -> Mapping[str, Metric]:
    from ewq.tasks import mmlu

    return mmlu.pair(result, reference)


def _mmlu_cloze(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import mmlu_cloze

    return mmlu_cloze.run(handle.model, bench.mmlu, progress=bench.progress)


def _pair_mmlu_cloze(result: TaskResult, reference: TaskResult) -> Mapping[str, Metric]:
    from ewq.tasks import mmlu_cloze

    return mmlu_cloze.pair(result, reference)


def _perplexity(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import perplexity

    return perplexity.run(
        handle.model,
        bench.texts,
        bench.definition,
        max_tokens_per_domain=bench.sizes.text_tokens,
        progress=bench.progress,
    )


def _pair_perplexity(result: TaskResult, reference: TaskResult) -> Mapping[str, Metric]:
    from ewq.tasks import perplexity

    return perplexity.pair(result, reference)


def _divergence(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import divergence

    reference = bench.references.distributions(handle)
    return divergence.run(
        handle.model,
        bench.texts,
        reference,
        max_tokens_per_domain=bench.sizes.divergence_tokens,
        progress=bench.progress,
    )


def _throughput(bench: Bench, handle: VariantHandle) -> Work:
    from ewq.tasks import throughput

    sizes = bench.sizes
    protocol = throughput.Protocol(
        prompt_tokens=sizes.prompt_tokens,
        new_tokens=sizes.new_tokens,
        batch_sizes=sizes.batch_sizes,
        warmup_rounds=sizes.warmup_rounds,
        rounds=sizes.rounds,
    )
    rounds = throughput.prepare(handle.model, protocol)
    return Work(rounds.one, rounds.result, sizes.rounds, sizes.warmup_rounds)


def _pair_throughput(result: TaskResult, reference: TaskResult) -> Mapping[str, Metric]:
    from ewq.tasks import throughput

    return throughput.pair(result, reference)


def _memory(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.harness.handle import collect_garbage
    from ewq.instruments.memory import release_free_memory
    from ewq.tasks import memory

    # Earlier tasks leave freed blocks behind, in the process and in torch's cache.
    collect_garbage()
    release_free_memory()
    work = memory.Round(bench.sizes.prompt_tokens, bench.sizes.new_tokens)
    return memory.run(handle.model, handle.load_reading, work)


def _samples(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import samples

    return samples.run(handle.model, new_tokens=bench.sizes.sample_tokens, progress=bench.progress)


def _pair_samples(result: TaskResult, reference: TaskResult) -> Mapping[str, Metric]:
    from ewq.tasks import samples

    return samples.pair(result, reference)


def _noise_floor(bench: Bench, handle: VariantHandle) -> TaskResult:
    from ewq.tasks import noise_floor

    questions = bench.sizes.noise_questions
    return noise_floor.run(handle.model, bench.mmlu, questions=questions, progress=bench.progress)


JOBS: Mapping[str, Job] = {
    "mmlu": Job(_single(_mmlu, "mmlu"), _pair_mmlu),
    "mmlu_cloze": Job(_single(_mmlu_cloze, "mmlu"), _pair_mmlu_cloze),
    "perplexity": Job(_single(_perplexity, "texts"), _pair_perplexity),
    "divergence": Job(_single(_divergence, "texts")),
    "throughput": Job(_throughput, _pair_throughput, same_session=True, on_random_weights=True),
    "memory": Job(_single(_memory), on_random_weights=True),
    "noise_floor": Job(_single(_noise_floor, "mmlu")),
    "samples": Job(_single(_samples), _pair_samples),
}
