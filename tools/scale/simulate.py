"""How long would a stored run have taken on more workers, and what then holds it up?

    python tools/scale/simulate.py RUN.json [--models 1] [--workers 1 2 4 8 64 512] [--speeds-apart]

Replays the durations of a stored run in the order that ewq/harness/fleet.py gives out: FP16 begins
with what the others wait for, and the others end with it. A worker first starts (`--start-s`) and
loads the model (the run's own figure). `--speeds-apart`: speed and memory follow at the end, one
by one, as on CPUs. `--models` repeats the run as a sweep does, one after the other; with
`--side-by-side` as that many runs on one cluster. Plans and exports are not counted.
Prints a table in Markdown.
"""

import argparse
import heapq
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ewq.harness.fleet import _is_waited_for  # noqa: E402
from ewq.tasks.table import TASKS  # noqa: E402
from ewq.variants import REFERENCE  # noqa: E402


def durations(path):
    """Variant -> task -> seconds, and variant -> seconds of loading."""
    tasks, loads = defaultdict(dict), {}
    for each in json.loads(path.read_text())["benchmarks"]:
        record = each["extra_info"]["ewq"]
        taken = each["stats"]["mean"] * each["stats"]["rounds"]
        tasks[record["variant"]][record["task"]] = taken
        if record["task"] == "memory":
            loads[record["variant"]] = record["metrics"]["load_s"]["value"]
    return tasks, loads


def makespan(tasks, loads, workers, start_s, apart):
    """Seconds of a whole run, and when FP16 had given what others wait for."""
    clocked = {name for name in TASKS if TASKS[name].is_clocked} if apart else set()
    late = sum(taken for own in tasks.values() for task, taken in own.items() if task in clocked)
    todo = {
        name: {task: taken for task, taken in own.items() if task not in clocked}
        for name, own in tasks.items()
    }
    free = [0.0] * workers
    heapq.heapify(free)
    first = sum(taken for task, taken in todo[REFERENCE].items() if _is_waited_for(task))
    opened = start_s + loads.get(REFERENCE, 0) + first
    heapq.heappop(free)
    rest = sum(todo[REFERENCE].values()) - first
    heapq.heappush(free, opened + rest)
    waiting = []
    for name in (name for name in todo if name != REFERENCE):
        begin = heapq.heappop(free)
        early = sum(taken for task, taken in todo[name].items() if not _is_waited_for(task))
        whole = sum(todo[name].values())
        ready = begin + (start_s if begin == 0 else 0) + loads.get(name, 0) + early
        if ready >= opened:
            heapq.heappush(free, ready + whole - early)
        else:
            waiting.append((name, whole - early))
            heapq.heappush(free, ready)
    for name, left in waiting:
        begin = max(opened, heapq.heappop(free))
        heapq.heappush(free, begin + loads.get(name, 0) + left)
    return max(free) + late, opened, late


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 64, 512])
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--start-s", type=float, default=15.0)
    parser.add_argument("--side-by-side", action="store_true")
    parser.add_argument("--speeds-apart", action="store_true")
    options = parser.parse_args()
    tasks, loads = durations(options.run)
    alone = sum(sum(own.values()) for own in tasks.values()) + sum(loads.values())
    lines = [
        f"{len(tasks)} variants, {alone * options.models:.0f} s one after the other.",
        "",
        "| workers | whole run, s | times faster | FP16 holds others until, s | speeds apart, s |",
        "| --: | --: | --: | --: | --: |",
    ]
    for workers in options.workers:
        at_once = min(workers, options.models) if options.side_by_side else 1
        own, times = workers // at_once, math.ceil(options.models / at_once)
        taken, opened, late = makespan(tasks, loads, own, options.start_s, options.speeds_apart)
        whole = taken * times
        row = (workers, whole, alone * options.models / whole, opened, late * times)
        lines.append("| {} | {:.0f} | {:.1f} | {:.0f} | {:.0f} |".format(*row))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
