"""What each option costs at decode: one model, every recipe, rounds interleaved.

``python tools/decode/measure.py [DEVICE]`` prints the table of
docs/results/decode_speed.md. Interleaving lets a busy machine slow every
recipe alike; the figure is the median over rounds, beside the fastest round.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ewq.planning.analysis import Analysis, analyze
from ewq.quantizer import EwqConfig
from ewq.quantizer.config import QUIET_LOGGERS
from ewq.variants import Precision

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""A third of SmolLM2-135M's blocks, with a small head so that the blocks are what is timed."""
PROMPT_TOKENS = 128
STEPS = 16
ROUNDS = 5
INT8, NF4 = Precision.EIGHT_BIT, Precision.FOUR_BIT
RECIPES: Mapping[str, tuple[Precision | None, dict[str, Any]]] = {
    "raw": (None, {}),
    "NF4": (NF4, {}),
    "NF4, double quantization": (NF4, {"double_quant": True}),
    "NF4, bfloat16 compute": (NF4, {"compute_dtype": "bfloat16"}),
    "int8, threshold 6": (INT8, {}),
    "int8, threshold 0": (INT8, {"int8_threshold": 0.0}),
    "int8, threshold 6, bitsandbytes' warnings on": (INT8, {}),
}


def main(device: str = "cpu") -> None:
    """Measure every recipe."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype).save_pretrained(folder)
        analysis = analyze(folder, cache=False)
        models = {name: load(folder, analysis, name, device, dtype) for name in RECIPES}
        rounds = [
            {name: run(model, name, device) for name, model in models.items()}
            for _ in range(ROUNDS + 1)
        ]
        report(rounds[1:], errors(models, device))


def load(
    folder: Path, analysis: Analysis, name: str, device: str, dtype: torch.dtype
) -> torch.nn.Module:
    """The model of one recipe."""
    precision, options = RECIPES[name]
    config = None
    if precision is not None:
        target = "nf4-double" if options.get("double_quant") else "nf4"
        config = EwqConfig(plan=analysis.uniform_plan(precision, target=target), **options)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, quantization_config=config
    ).eval()


@contextmanager
def warnings_as(name: str) -> Iterator[None]:
    """bitsandbytes' warnings on for the recipe that says so, into nothing but a formatter."""
    logger = logging.getLogger(QUIET_LOGGERS[0])
    sink = Path(os.devnull).open("w")  # noqa: SIM115 - closed below with the handler gone
    handler = logging.StreamHandler(sink)
    before = logger.level, logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    if "warnings on" in name:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        sink.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@torch.inference_mode()
def run(model: torch.nn.Module, name: str, device: str) -> tuple[float, float]:
    """Prefill and decode tokens per second of one round."""
    ids = torch.arange(PROMPT_TOKENS, device=device)[None] * 13 % SHAPE["vocab_size"]
    with warnings_as(name):
        start = now(device)
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefilled = now(device)
        for _ in range(STEPS):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        done = now(device)
    return PROMPT_TOKENS / (prefilled - start), STEPS / (done - prefilled)


def now(device: str) -> float:
    """Seconds, once the device has finished."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def errors(models: Mapping[str, torch.nn.Module], device: str) -> dict[str, float]:
    """Greatest difference of any logit to the recipe that computes as asked, per recipe."""
    ids = torch.arange(64, device=device)[None]
    found = {name: model(ids).logits.float() for name, model in models.items()}
    plain = {NF4: "NF4", INT8: "int8, threshold 6", None: "raw"}
    return {
        name: (logits - found[plain[RECIPES[name][0]]]).abs().max().item()
        for name, logits in found.items()
    }


def report(rounds: list[dict[str, tuple[float, float]]], differences: dict[str, float]) -> None:
    """The table on stdout."""
    sys.stdout.write(
        "| recipe | prefill tokens/s | decode tokens/s | fastest round | greatest logit change |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
    )
    for name, difference in differences.items():
        prefill = statistics.median(found[name][0] for found in rounds)
        decode = [found[name][1] for found in rounds]
        median = statistics.median(decode)
        sys.stdout.write(
            f"| {name} | {prefill:,.0f} | {median:.1f} | {max(decode):.1f} | {difference:.1e} |\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
