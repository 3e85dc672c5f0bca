"""Compare ewq's MMLU with lm-evaluation-harness: same log-likelihoods, same answers, less time.

lm_eval lives in an environment of its own and is no dependency of ewq:

    python -m venv lmeval
    lmeval/bin/pip install "lm_eval[hf]==0.4.13" torch==2.13.0 transformers==5.23.0
    python tools/compare_lm_eval.py --lm-eval-python lmeval/bin/python --mmlu MMLU_FOLDER

Both sides answer the same questions in one run, subject by subject in turn, in
float32 on the CPU with the same number of threads; loading the model is outside
both clocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import EMBEDDED_MODEL, embedded_model
from ewq.data.mmlu import load_mmlu
from ewq.tasks import mmlu
from ewq.tasks.mmlu_scores import unpack_logprobs

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
    ours, theirs, seconds, release = measure(model, options)
    report = {
        "model": options.model or EMBEDDED_MODEL,
        "subjects": list(options.subjects),
        "questions": len(ours),
        "shots": options.shots,
        "threads": options.threads,
        "lm_eval": release,
        "lm_eval_batch": options.batch,
        "largest_difference_nats": float(np.abs(ours - theirs).max()),
        "same_answers": int((ours.argmax(1) == theirs.argmax(1)).sum()),
        **{name: float(value) for name, value in seconds.items()},
        "wall_ratio": seconds["lm_eval_wall_s"] / seconds["ewq_wall_s"],
        "cpu_ratio": seconds["lm_eval_cpu_s"] / seconds["ewq_cpu_s"],
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


def measure(model, options):
    """Both sides in turn, subject by subject, so that a busy machine burdens both alike."""
    torch.set_num_threads(options.threads)
    data = load_mmlu(options.mmlu).only(options.subjects).first(options.per_subject)
    loaded = load_transformers(model)
    ours, theirs, seconds = [], [], Counter()
    with worker(model, options) as (release, ask_lm_eval):
        for subject in options.subjects:
            wall, cpu = time.perf_counter(), time.process_time()
            result = mmlu.run(loaded, data.only([subject]), shots=options.shots)
            seconds["ewq_wall_s"] += time.perf_counter() - wall
            seconds["ewq_cpu_s"] += time.process_time() - cpu
            ours.append(unpack_logprobs(result.side["logprobs"]))
            reply = ask_lm_eval(subject)
            seconds["lm_eval_wall_s"] += reply["wall_s"]
            seconds["lm_eval_cpu_s"] += reply["cpu_s"]
            theirs.append(np.array(reply["logprobs"]))
    return np.concatenate(ours), np.concatenate(theirs), seconds, release


@contextmanager
def worker(model, options):
    request = {
        "model": model,
        "mmlu": str(Path(options.mmlu).resolve()),
        "per_subject": options.per_subject,
        "shots": options.shots,
        "batch": options.batch,
        "threads": options.threads,
    }
    command = [options.lm_eval_python, str(WORKER), json.dumps(request)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        release = process.stdout.readline().strip()

        def ask(subject):
            process.stdin.write(subject + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield release, ask
        process.stdin.close()


def acceptable(report):
    return (
        report["largest_difference_nats"] <= TOLERANCE_NATS
        and report["same_answers"] == report["questions"]
        and report["wall_ratio"] >= LEAST_SPEEDUP
    )


if __name__ == "__main__":
    sys.exit(main())
