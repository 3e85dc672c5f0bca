"""The other side of compare_lm_eval.py: runs in an environment that has lm_eval and not ewq.

Usage: python lm_eval_worker.py REQUEST, a JSON object; then one subject a line on
standard input, each answered by one line of JSON. The first line is lm_eval's version.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    model = HFLM(
        pretrained=request["model"], device="cpu", dtype="float32", batch_size=request["batch"]
    )
    replies.write(version("lm_eval") + "\n")
    replies.flush()
    with tempfile.TemporaryDirectory() as work:
        for line in sys.stdin:
            replies.write(json.dumps(ask(model, line.strip(), Path(work), request)) + "\n")
            replies.flush()


def ask(model, subject, work, request):
    task = task_config(Path(request["mmlu"]), work, subject, request)
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = lm_eval.simple_evaluate(
        model=model, tasks=[task], num_fewshot=request["shots"], bootstrap_iters=0, log_samples=True
    )
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "logprobs": read(outcome["samples"][task_name(subject)]),
    }


def task_name(subject):
    return f"mmlu_{subject}_local"


def task_config(mmlu, work, subject, request):
    """lm_eval's own task, its prompt untouched, reading local rows instead of the hub's."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    config = yaml.safe_load((folder / "_default_template_yaml").read_text())
    config |= yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text())
    files = {
        split: str(rows_as_json(mmlu, work, subject, split, limit))
        for split, limit in (("dev", None), ("test", request["per_subject"]))
    }
    for key in ("include", "tag", "dataset_name", "task_alias"):
        config.pop(key, None)
    return config | {
        "task": task_name(subject),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
    }


def rows_as_json(mmlu, work, subject, split, limit):
    target = work / f"{subject}_{split}.jsonl"
    with (mmlu / split / f"{subject}_{split}.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))[:limit]
    lines = (
        json.dumps({"question": q, "choices": choices, "answer": "ABCD".index(letter)})
        for q, *choices, letter in rows
    )
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def read(samples):
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[float(response[0]) for response in sample["filtered_resps"]] for sample in ordered]


if __name__ == "__main__":
    main()
