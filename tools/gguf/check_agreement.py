"""Do ``gguf-f16`` and the 16-bit checkpoint agree? Mean KLD over tokens, and MMLU answers.

    python tools/gguf/check_agreement.py MODEL TEXT [--mmlu DIR --questions N] [--tokens N]

MODEL is a Hugging Face folder, TEXT a text file. Prints one JSON document.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch

from ewq.backends.llama_cpp import load_llama_cpp
from ewq.backends.transformers import load_transformers
from ewq.data.mmlu import load_mmlu
from ewq.files import cache_dir
from ewq.gguf.cache import cached_gguf
from ewq.gguf.recipe import make_recipe
from ewq.tasks import mmlu
from ewq.tasks.mmlu_scores import unpack_logprobs

TIE_NATS = 0.05
"""Letters closer than this may swap places by rounding alone."""


def divergence(reference, other, ids, window):
    kld, same = [], []
    for begin in range(0, len(ids) - window + 1, window):
        chunk = ids[begin : begin + window]
        for p, q in itertools.zip_longest(reference.logprobs(chunk, 1), other.logprobs(chunk, 1)):
            kld += (p.exp() * (p - q)).sum(-1).tolist()
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
    return {"tokens": len(kld), "kld_mean": sum(kld) / len(kld), "kld_max": max(kld),
            "top1_agreement": sum(same) / len(same)}  # fmt: skip


def answers(model, data, shots):
    return torch.from_numpy(
        unpack_logprobs(mmlu.run(model, data, shots=shots).side["logprobs"]).copy()
    )


def agreement(reference, other, data, shots):
    a, b = answers(reference, data, shots), answers(other, data, shots)
    changed = (a.argmax(1) != b.argmax(1)).nonzero()[:, 0]
    top = a.topk(2, dim=1).values
    return {
        "questions": len(a),
        "answers_changed": len(changed),
        "margins_of_changed_nats": [round(float(top[i, 0] - top[i, 1]), 4) for i in changed],
        "changed_beyond_ties": sum(float(top[i, 0] - top[i, 1]) > TIE_NATS for i in changed),
        "largest_logprob_difference": float((a - b).abs().max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--mmlu", type=Path)
    parser.add_argument("--questions", type=int, default=57)
    parser.add_argument("--subjects", help="comma-separated; default: a sample of all")
    parser.add_argument("--shots", type=int, default=5)
    options = parser.parse_args()
    reference = load_transformers(options.model)
    path = cached_gguf(options.model, make_recipe("F16"), cache_dir("gguf"))
    other = load_llama_cpp(path, reference.tokenizer)
    window = min(512, reference.info.context_length)
    text = options.text.read_text(encoding="utf-8")[: 8 * options.tokens]
    ids = reference.tokenizer(text)["input_ids"][: options.tokens]
    result = {"model": options.model.name, **divergence(reference, other, ids, window)}
    if options.mmlu:
        data = load_mmlu(options.mmlu)
        if options.subjects:
            data = data.only(options.subjects.split(","))
        data = data.subset(options.questions)
        result["mmlu"] = agreement(reference, other, data, options.shots)
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
