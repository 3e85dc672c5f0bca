"""What a run on a GPU is going to take, told before anything loads; what cannot fit is refused."""

import time
from collections.abc import Callable

import torch

from ewq.errors import InputError
from ewq.files import cache_dir, check_output, folder_bytes
from ewq.harness.loading import weights_bytes
from ewq.harness.session import Session
from ewq.harness.subject import Subject
from ewq.instruments.gpu import free_memory, gpus_of
from ewq.tasks.table import Data, find_task
from ewq.variants import LLAMA_CPP, engine_of

QUESTION_TOKENS = 150
"""Of a question with its share of the examples before it, about."""
SIDE = 4096
"""Of the matrix whose square tells how fast the GPU multiplies."""


def budget_line(session: Session) -> str:
    """What is loaded, the largest variant beside free memory, disk and time; empty on a CPU.

    An InputError of weights that exceed the GPU's free memory, or files that exceed the disk.
    """
    subject, placement, name_of = session.subject, session.placement, session.options.variant
    todo = [key for key in session.selected if key not in session.journal.completed]
    if not todo or not gpus_of(placement.device) or not isinstance(subject, Subject):
        return ""
    names, tasks = (dict.fromkeys(key[part] for key in todo) for part in (0, 1))
    sizes = {name: weights_bytes(name_of(name), subject, placement) for name in names}
    free, largest = free_memory(placement.device)[0], max(sizes, key=sizes.__getitem__)
    takes = f"{largest} takes {_gb(sizes[largest])} of {_gb(free)} free on {placement.device}"
    if too_large := [name for name in names if sizes[name] > free]:
        fitting = ", ".join(name for name in names if name not in too_large) or "nothing else"
        plan = f"`ewq plan MODEL --target-vram {_gb(free)}` plans what does"
        raise InputError(f"{takes}: leave out {', '.join(too_large)}; {fitting} would fit, {plan}")
    made = [sizes[n] for n in names if engine_of(n) == LLAMA_CPP and not n.endswith(".gguf")]
    base = 2 * subject.footprint.numel if made else 0
    config = subject.checkpoint.text_config
    rows = _tokens(session, "divergence") if "divergence" in tasks else 0
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    disk = {
        "gguf": max(0, base + sum(made) - folder_bytes(cache_dir("gguf"))),
        "distributions": 4 * (rows + int(config.get("vocab_size") or 0)) * width if rows else 0,
    }
    for kind, nbytes in disk.items():
        check_output(cache_dir(kind, "this-run"), needed_bytes=nbytes)
    load_s, token_s = _probed_s(subject, placement.device, placement.dtype)
    least_s = len(names) * load_s + sum(_tokens(session, task) for _, task in todo) * token_s
    told = f"up to {_gb(sum(disk.values()))} of disk, at least {least_s / 60:.1f} min"
    return f"ewq: loads {len(names)} variants; the largest, {takes}; {told}"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f}GB"


def _probed_s(subject: Subject, device: str, dtype: str) -> tuple[float, float]:
    """Seconds to bring the weights to the GPU, and to multiply them with a token, by a trial."""
    stored, weights, gpu = subject.checkpoint, subject.footprint.numel, gpus_of(device)[0]
    sample = stored.load(max(stored.tensors, key=lambda name: stored.tensors[name].nbytes))
    sample = sample.flatten()[: SIDE**2]
    square = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype), device=gpu)
    took_s: list[float] = []
    works: list[Callable[[], torch.Tensor]] = [lambda: sample.to(gpu), lambda: square @ square]
    for work in works:
        for _ in range(2):  # the first time for what a device does once
            begun_s = time.perf_counter()
            work().flatten()[-1].item()
        took_s.append(time.perf_counter() - begun_s)
    return took_s[0] * weights / sample.numel(), took_s[1] * weights / SIDE**3


def _tokens(session: Session, task: str) -> int:
    """Tokens that a task feeds a model, about; none where it says nothing."""
    data, tier, kind = session.data, session.data.sizes, find_task(task).data
    if session.subject.is_dummy and not find_task(task).on_random_weights:
        return 0
    if kind is Data.QUESTIONS:
        return QUESTION_TOKENS * len(data.mmlu.test)
    if kind is Data.TEXTS:
        whole = sum(len(document.text) for document in data.texts.documents) // 4
        limit = tier.divergence_tokens if task == "divergence" else tier.text_tokens
        return min(whole, (limit or whole) * len(data.texts.domains))
    return tier.rounds * sum(tier.batch_sizes) * (tier.prompt_tokens + tier.new_tokens)
