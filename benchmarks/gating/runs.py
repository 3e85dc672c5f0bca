"""Runs of the smoke tier in processes of their own, for the checks beside this file."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CLOCKED = {"throughput", "memory"}
"""Tasks whose figures differ from run to run."""


def smoke(storage, *arguments, checkout=ROOT, kill_after_s=None):
    """Run ``pytest benchmarks/`` in the smoke tier; returns ``(exit status, output)``.

    ``kill_after_s`` sends SIGKILL to the whole process group after so many seconds.
    """
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--ewq-tier", "smoke"]
    command += [f"--benchmark-storage={storage}", "--benchmark-autosave", "-q", *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return process.returncode, output


def stored(storage):
    """Paths of the stored runs, oldest first."""
    return sorted(Path(storage).glob("*/*.json"))


def records(path):
    """``variant/task`` -> what two runs of the same code share of each record."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    found = [benchmark["extra_info"]["ewq"] for benchmark in benchmarks]
    return {f"{each['variant']}/{each['task']}": _shared(each) for each in found}


def _shared(record):
    kept = {key: record[key] for key in ("variant", "task", "settings", "items", "plan", "tier")}
    metrics = record["metrics"]
    return kept | {"metrics": sorted(metrics) if record["task"] in CLOCKED else metrics}


def finished(storage):
    """How often each measurement was finished, over all processes of a run."""
    lines = (Path(storage) / "journal.previous.jsonl").read_bytes().splitlines()
    entries = [json.loads(line) for line in lines]
    return Counter("/".join(each["key"]) for each in entries if each["kind"] == "finished")
