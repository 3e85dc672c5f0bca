"""Compare ewq's MMLU with lm-evaluation-harness: same log-likelihoods, same answers, less time.

lm_eval lives in an environment of its own and is no dependency of ewq:

    python -m venv lmeval
    lmeval/bin/pip install "lm_eval[hf]==0.4.13" torch==2.13.0 transformers==5.23.0
    python benchmarks/compare_lm_eval.py --lm-eval-python lmeval/bin/python --mmlu MMLU_FOLDER

Both sides answer the same questions in one run, in float32 on the CPU with the
same number of threads; loading the model is outside both clocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ewq.backends.transformers import load_transformers
from ewq.data.mmlu import load_mmlu
from ewq.embedded import EMBEDDED_MODEL, embedded_model
from ewq.tasks import mmlu

SUBJECTS = (
    "anatomy",
    "computer_security",
    "high_school_geography",
    "international_law",
    "marketing",
    "professional_psychology",
)
TOLERANCE_NATS = 1e-3
LEAST_SPEEDUP = 5.0
WORKER = Path(__file__).with_name("lm_eval_worker.py")


def main() -> int:
    options = parse_arguments()
    model = options.model or str(embedded_model())
    ours, our_seconds = ask_ewq(model, options)
    reply = ask_lm_eval(model, options)
    theirs = np.array([row for subject in options.subjects for row in reply["logprobs"][subject]])
    report = {
        "model": options.model or EMBEDDED_MODEL,
        "subjects": list(options.subjects),
        "questions": len(ours),
        "shots": options.shots,
        "threads": options.threads,
        "lm_eval": reply["lm_eval"],
        "lm_eval_batch": options.batch,
        "largest_difference_nats": float(np.abs(ours - theirs).max()),
        "same_answers": int((ours.argmax(1) == theirs.argmax(1)).sum()),
        "ewq_s": our_seconds,
        "lm_eval_s": reply["seconds"],
        "speedup": reply["seconds"] / our_seconds,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if acceptable(report) else 1


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm-eval-python", required=True, help="interpreter that has lm_eval")
    parser.add_argument("--mmlu", required=True, help="folder with dev/ and test/")
    parser.add_argument("--model", help="a local Hugging Face folder; default: the embedded model")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    parser.add_argument("--per-subject", type=int, default=25)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="lm_eval's batch size")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def ask_ewq(model, options):
    import torch

    torch.set_num_threads(options.threads)
    data = load_mmlu(options.mmlu).only(options.subjects).first(options.per_subject)
    loaded = load_transformers(model)
    begin = time.perf_counter()
    result = mmlu.run(loaded, data, shots=options.shots)
    seconds = time.perf_counter() - begin
    loaded.close()
    logprobs = mmlu.unpack_logprobs(result.side["logprobs"])
    rows, begin = {}, 0
    for subject, size in data.subjects.items():
        rows[subject] = logprobs[begin : begin + size]
        begin += size
    return np.concatenate([rows[subject] for subject in options.subjects]), seconds


def ask_lm_eval(model, options):
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder, "request.json"), Path(folder, "reply.json")
        asked = {
            "model": model,
            "mmlu": str(Path(options.mmlu).resolve()),
            "subjects": list(options.subjects),
            "per_subject": options.per_subject,
            "shots": options.shots,
            "batch": options.batch,
            "threads": options.threads,
        }
        request.write_text(json.dumps(asked))
        subprocess.run(
            [options.lm_eval_python, str(WORKER), str(request), str(reply)],
            check=True,
            stdout=sys.stderr,
        )
        return json.loads(reply.read_text())


def acceptable(report):
    return (
        report["largest_difference_nats"] <= TOLERANCE_NATS
        and report["same_answers"] == report["questions"]
        and report["speedup"] >= LEAST_SPEEDUP
    )


if __name__ == "__main__":
    sys.exit(main())
