"""MMLU on a GGUF: ewq against one ``create_completion`` call per question, same questions.

    python tools/gguf/check_mmlu_speed.py MODEL MMLU_DIR [--type Q8_0] [--per-subject 25]

``create_completion`` gets the same token ids and is asked for one token, in three ways:

- ``logprobs``: with the log-probabilities of the letters, which needs ``logits_all``;
- ``letter``: all other tokens are forbidden, and the letter it then writes is the answer;
- ``letter_afresh``: the same after a ``reset``, so that every call computes its whole prompt.

The first two keep what a prompt shares with the one before it, as llama-cpp-python does by itself.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
import torch

from ewq.backends.llama_cpp import load_llama_cpp
from ewq.checkpoint.loading import load_tokenizer
from ewq.data.mmlu import load_mmlu
from ewq.files import cache_dir
from ewq.gguf.cache import cached_gguf
from ewq.gguf.recipe import make_recipe
from ewq.tasks import mmlu
from ewq.tasks.mmlu_scores import unpack_logprobs

WAYS = ("logprobs", "letter", "letter_afresh")


def one_call_per_question(path, tokenizer, data, threads, way):
    logprobs = way == "logprobs"
    model = llama_cpp.Llama(
        str(path), n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False,
        logits_all=logprobs,
    )  # fmt: skip
    letters = [
        tokenizer(" " + letter, add_special_tokens=False)["input_ids"][0] for letter in "ABCD"
    ]
    # Without logprobs, the most likely letter is had by forbidding every other token.
    bias = None
    if not logprobs:
        bias = llama_cpp.LogitsProcessorList([lambda ids, scores: only(scores, letters)])
    answers = []
    begin = time.perf_counter()
    for subject, questions in data.by_subject():
        head = mmlu.preamble(subject, data.dev[subject][:5])
        for question in questions:
            ids = tokenizer(head + mmlu.question_text(question))["input_ids"]
            if way == "letter_afresh":
                model.reset()
            out = model.create_completion(
                ids, max_tokens=1, temperature=0.0, logits_processor=bias,
                logprobs=50 if logprobs else None,
            )  # fmt: skip
            answers.append(answer_of(out["choices"][0], logprobs))
    seconds = time.perf_counter() - begin
    model.close()
    return answers, seconds


def only(scores, letters):
    kept = np.full_like(scores, -np.inf)
    kept[letters] = scores[letters]
    return kept


def answer_of(choice, logprobs):
    if not logprobs:
        return "ABCD".find(choice["text"].strip() or "?")
    top = choice["logprobs"]["top_logprobs"][0]
    return int(np.argmax([top.get(" " + letter, -np.inf) for letter in "ABCD"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("mmlu", type=Path)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--subjects", default="astronomy,anatomy,marketing,virology")
    parser.add_argument("--per-subject", type=int, default=10)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    tokenizer = load_tokenizer(Path(options.model), options.model)
    data = load_mmlu(options.mmlu).only(options.subjects.split(",")).first(options.per_subject)
    path = cached_gguf(options.model, make_recipe(options.type), cache_dir("gguf"))
    model = load_llama_cpp(path, tokenizer)
    model.last_logprobs([], [[0] * 64], [0])
    begin = time.perf_counter()
    result = mmlu.run(model, data)
    ours_s = time.perf_counter() - begin
    model.close()
    ours = unpack_logprobs(result.side["logprobs"])
    ways = {}
    for way in WAYS:
        theirs, theirs_s = one_call_per_question(path, tokenizer, data, threads, way)
        ways[way] = {"seconds": theirs_s, "ratio": theirs_s / ours_s, **differences(ours, theirs)}
    json.dump({
        "type": options.type, "questions": len(ours), "threads": threads, "ewq_s": ours_s,
        "create_completion": ways,
    }, sys.stdout, indent=1)  # fmt: skip
    sys.stdout.write("\n")


def differences(ours, theirs):
    """Other answers, with how close ewq's two best letters were."""
    top = np.sort(ours, axis=1)
    changed = [i for i, answer in enumerate(theirs) if answer != ours[i].argmax()]
    margins = [round(float(top[i, 3] - top[i, 2]), 4) for i in changed]
    return {"answers_changed": len(changed), "margins_of_changed_nats": margins}


if __name__ == "__main__":
    main()
