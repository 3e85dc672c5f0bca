"""KLD of a model whose matrices are rounded plainly, by importance, or so that errors cancel.

The same types and bytes each time; the embedding stays as it is. Sequences are cut from ewq's
texts, or sampled from the model itself where it speaks no language:

    python tools/rounding.py MODEL Q4_0,Q5_0
    python tools/rounding.py MODEL Q3_K,Q4_K --sampled 1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import load_texts
from ewq.gguf.gptq import FLOOR, round_matrix
from ewq.gguf.rounding import divides, rounded, unpack
from ewq.sensitivity.calibration import Calibrating, calibration_texts, make_calibration
from ewq.sensitivity.gradients import SecondMoments

SMALLER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes for rows that 256 does not divide."""
Rounding = Callable[[np.ndarray, np.ndarray, str], np.ndarray]
ROUNDINGS: Mapping[str, Rounding] = {
    "plain": lambda weight, _, kind: rounded(weight, kind),
    "importance": lambda weight, moments, kind: rounded(
        weight, kind, np.maximum(moments.diagonal(), FLOOR * moments.diagonal().mean())
    ),
    "gptq": lambda weight, moments, kind: unpack(round_matrix(weight, moments, kind), kind),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("types", help="ggml types, separated by commas")
    parser.add_argument("--sampled", type=int, metavar="TOKEN", help="sample after this token")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    calibration, evaluation = sequences(model, options)
    linear = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and not name.endswith("lm_head")
    }
    moments = SecondMoments(model, list(linear))
    for ids in calibration:
        moments.add(ids)
    means, reference = moments.means(), log_probabilities(model, evaluation)
    matrices = {name: matrix(module).clone() for name, module in linear.items()}
    for kind in options.types.split(","):
        found = {}
        for rounding, round_one in ROUNDINGS.items():
            for name, module in linear.items():
                weight = matrices[name].numpy()
                fitting = kind if divides(kind, weight.shape[1]) else SMALLER.get(kind, kind)
                if divides(fitting, weight.shape[1]):
                    store(module, round_one(weight, means[name], fitting))
            found[rounding] = klds(reference, log_probabilities(model, evaluation))
        sys.stdout.write(row(kind, found) + "\n")
        sys.stdout.flush()


def sequences(
    model: torch.nn.Module, options: argparse.Namespace
) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
    """Calibration and evaluation, of different texts or drawn with different seeds."""
    if options.sampled is None:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        made = [
            make_calibration(texts, tokenizer, Calibrating(None, count, options.tokens)).sequences
            for texts, count in ((calibration_texts(), 32), (load_texts(fixture_path("texts")), 12))
        ]
        return made[0], made[1]
    drawn = []
    for seed, count in ((1, 64), (2, 32)):
        torch.manual_seed(seed)
        start = torch.full((count, 1), options.sampled)
        settings = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
        drawn.append(model.generate(start, max_length=options.tokens, **settings).tolist())
    return drawn[0], drawn[1]


def matrix(module: torch.nn.Module) -> torch.Tensor:
    """``[out, in]``."""
    weight = module.weight.data
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def store(module: torch.nn.Module, values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    module.weight.data = weight.T.contiguous() if isinstance(module, Conv1D) else weight


def log_probabilities(model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in texts]


def klds(reference: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> np.ndarray:
    """Mean KLD of each sequence in millinats a token."""
    pairs = zip(reference, found, strict=True)
    return np.array([1000 * float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs])


def row(kind: str, found: Mapping[str, np.ndarray]) -> str:
    """Means, and the ratio of the last two with its paired standard error over sequences."""
    before, after = found["importance"], found["gptq"]
    ratio = after.mean() / before.mean()
    stderr = (after - ratio * before).std(ddof=1) / len(after) ** 0.5 / before.mean()
    means = " | ".join(f"{values.mean():.4g}" for values in found.values())
    return f"| {kind} | {means} | {ratio:.2f} ±{stderr:.2f} |"


if __name__ == "__main__":
    main()
