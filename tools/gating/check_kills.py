"""Is anything lost or measured twice when the smoke run is killed and resumed?

    python tools/gating/check_kills.py [--kills 20] [--variants A,B] [--docs] [--json FILE]

Runs the smoke tier once undisturbed; then sends SIGKILL at random moments, once or twice a run,
resumes, and compares the whole stored run with the undisturbed one, times apart. Prints one line;
the exit status is 1 where a resumed run lost, repeated or changed anything.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from runs import conclude, count_finished, finished, parser, shared, smoke, stored

from ewq.storage.journal import JOURNAL


def one_run(storage, select, moments_s, expected):
    """Outcome of a run killed at each moment and resumed; ``None`` where it ended before the first.

    A moment that the resumed run does not live to see kills nothing.
    """
    kept = []
    for moment_s in moments_s:
        status, output = smoke(storage, *select, *_resume(storage), kill_after_s=moment_s)
        if status != -signal.SIGKILL:
            break
        kept.append(_finished_so_far(storage))
    if not kept:
        return None
    if status == -signal.SIGKILL:
        status, output = smoke(storage, *select, *_resume(storage))
    runs = stored(storage)
    outcome = {
        "moments_s": [round(each, 2) for each in moments_s],
        "kept_at_kills": kept,
        "exit": status,
        "same_run": bool(runs) and shared(runs[-1]) == expected,
        "each_measured_once": status == 0
        and finished(storage) == dict.fromkeys(expected["benchmarks"], 1),
    }
    good = status == 0 and outcome["same_run"] and outcome["each_measured_once"]
    return outcome if good else outcome | {"output": output[-2000:]}


def _resume(storage):
    """Nothing was begun where the first kill came before the journal."""
    return ["--ewq-resume"] if (storage / JOURNAL).is_file() else []


def _finished_so_far(storage):
    journal = storage / JOURNAL
    return count_finished(journal).total() if journal.is_file() else 0


def undisturbed(folder, select):
    """What a run holds that nobody kills, and its seconds; a run before it fills the caches."""
    smoke(folder / "warm-up", *select)
    begin_s = time.monotonic()
    status, output = smoke(folder / "whole", *select)
    if status:
        sys.exit(output)
    return shared(stored(folder / "whole")[-1]), time.monotonic() - begin_s


def kill_runs(folder, options, expected, duration_s):
    """Outcomes of as many killed runs as it takes; every other is killed again on resuming."""
    moments, outcomes, attempt = random.Random(options.seed), [], 0
    while _kills(outcomes) < options.kills:
        attempt += 1
        chosen = [moments.uniform(0, duration_s) for _ in range(1 + attempt % 2)]
        select = ("--ewq-variants", options.variants)
        outcome = one_run(folder / f"killed-{attempt}", select, chosen, expected)
        outcomes += [outcome] if outcome else []
    return outcomes


def _kills(outcomes):
    return sum(len(each["kept_at_kills"]) for each in outcomes)


def report(options, expected, outcomes, duration_s):
    good = [each for each in outcomes if "output" not in each]
    measured = len(expected["benchmarks"])
    midway = sum(0 < kept < measured for each in outcomes for kept in each["kept_at_kills"])
    lines = [
        f"{len(good)} of {len(outcomes)} runs, killed {_kills(outcomes)} times in all, gave the "
        "stored run of an undisturbed one, with nothing lost and nothing measured twice",
        f"{measured} measurements of {options.variants.replace(',', ', ')} in "
        f"{duration_s:.0f} s; {midway} kills came after a first measurement was done.",
        "",
        "| killed after s | measurements kept | exit status | same run | each measured once |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for each in outcomes:
        cells = [", ".join(map(str, each[key])) for key in ("moments_s", "kept_at_kills")]
        cells += [str(each["exit"])]
        cells += ["yes" if each[key] else "no" for key in ("same_run", "each_measured_once")]
        lines.append(f"| {' | '.join(cells)} |")
    seen = {"undisturbed_s": duration_s, "measurements": measured, "outcomes": outcomes}
    conclude(options, "Killed at random moments", len(good) == len(outcomes), lines, seen)


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--variants", default="fp16,ewq-0.65,bnb-nf4,gguf-q8_0")
    options.add_argument("--seed", type=int, default=2024)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        select = ("--ewq-variants", options.variants)
        expected, duration_s = undisturbed(Path(folder), select)
        outcomes = kill_runs(Path(folder), options, expected, duration_s)
    report(options, expected, outcomes, duration_s)


if __name__ == "__main__":
    main()
