"""Runs of the smoke tier in processes of their own, for the checks beside this file."""

import argparse
import json
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from ewq.storage.journal import PREVIOUS_JOURNAL

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "docs" / "results" / "gates.md"
HEAD = """\
<!-- Written by tools/gating/check_kills.py and check_alarms.py, each its own section. -->

# Gates, tried out

On the smoke tier (a tiny Llama, CPU), in real processes; [ci.md](../ci.md) tells what is gated.
"""
CLOCKED = {"throughput", "memory"}
"""Tasks whose figures differ from run to run, and with them notes, verdicts and reasons."""
EXACT = {"weights_bytes", "bits_per_weight"}
"""Their metrics that do not."""


def parser(description):
    """The options that every check has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, help="a file for everything that was seen")
    made.add_argument("--docs", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    return made


def smoke(storage, *arguments, checkout=ROOT, kill_after_s=None):
    """Run ``pytest benchmarks/`` in the smoke tier; returns ``(exit status, output)``.

    ``kill_after_s`` sends SIGKILL to the whole process group after so many seconds.
    """
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--ewq-tier", "smoke"]
    command += [f"--benchmark-storage={storage}", "--benchmark-autosave", "-q", *arguments]
    process = subprocess.Popen(
        command, cwd=checkout, env=environment(checkout), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return process.returncode, output


def environment(checkout):
    """Variables of a process that is to use a checkout's own code."""
    return os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}


def stored(storage):
    """Paths of the stored runs, oldest first."""
    return sorted(Path(storage).glob("*/*.json"))


def shared(path):
    """What a stored run has in common with every other of the same code: all but times."""
    run = json.loads(path.read_text())
    session = {key: value for key, value in run["ewq"].items() if key not in ("loads", "verdicts")}
    return {
        "session": session,
        "machine": run["machine_info"]["ewq"],
        "benchmarks": {_name(each): _shared(each) for each in run["benchmarks"]},
    }


def _name(benchmark):
    record = benchmark["extra_info"]["ewq"]
    return f"{record['variant']}/{record['task']}"


def _shared(benchmark):
    record = benchmark["extra_info"]["ewq"]
    kept = {key: benchmark[key] for key in ("fullname", "group", "params")}
    kept |= {"rounds": benchmark["stats"]["rounds"], "record": record}
    if record["task"] in CLOCKED:
        own = ("fingerprint", "variant", "task", "tier", "settings", "plan")
        exact = {name: metric if name in EXACT else None
                 for name, metric in record["metrics"].items()}  # fmt: skip
        kept["record"] = {key: record[key] for key in own} | {"metrics": exact}
    return kept


def finished(storage):
    """How often each measurement was finished, over all processes of a run."""
    return count_finished(Path(storage) / PREVIOUS_JOURNAL)


def count_finished(journal):
    """How often a journal has each measurement as finished."""
    with closing(sqlite3.connect(journal)) as file:
        rows = file.execute("SELECT variant || '/' || task FROM events WHERE kind = 'finished'")
        return Counter(name for (name,) in rows)


def conclude(options, title, good, lines, seen):
    """Say what came of a check in one line, write what is asked for, and end with 0 or 1."""
    verdict = f"{'holds' if good else 'DOES NOT HOLD'}: {lines[0]}"
    if options.json:
        options.json.write_text(json.dumps({"holds": good, "verdict": verdict, **seen}, indent=1))
    if options.docs:
        _write_section(title, [verdict + ".", "", *lines[1:]])
    sys.stdout.write(f"{title}: {verdict}\n")
    sys.exit(not good)


def _write_section(title, lines):
    text = RESULTS.read_text() if RESULTS.is_file() else HEAD
    others = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    RESULTS.write_text(
        "\n".join([others.rstrip(), "", f"## {title}", "", _where(), "", *lines, ""])
    )


def _where():
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    command = " ".join(
        ["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]
    )
    day = datetime.now(UTC).date().isoformat()
    return f"`{command}`, commit {commit}, {day}, {platform.machine()}, {os.cpu_count()} cores."
