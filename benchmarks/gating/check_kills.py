"""Is anything lost or measured twice when the smoke run is killed and resumed?

    python benchmarks/gating/check_kills.py [--kills 20] [--variants fp16,ewq-0.65,...]

Runs the smoke tier once undisturbed; then sends SIGKILL at random moments, once or twice a run,
resumes, and compares the stored records with those of the undisturbed run. Prints one JSON
document; the exit status is 1 where a resumed run lost, repeated or changed anything.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from runs import finished, records, smoke, stored


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
    same = bool(runs) and records(runs[-1]) == expected
    once = finished(storage) == dict.fromkeys(expected, 1)
    outcome = {"moments_s": [round(each, 2) for each in moments_s], "kept_at_kills": kept}
    outcome |= {"exit": status, "same_records": same, "each_measured_once": once}
    return outcome if status == 0 and same and once else outcome | {"output": output[-2000:]}


def _resume(storage):
    """Nothing was begun where the first kill came before the journal."""
    return ["--ewq-resume"] if (storage / "journal.jsonl").is_file() else []


def _finished_so_far(storage):
    journal = storage / "journal.jsonl"
    return journal.read_bytes().count(b'"finished"') if journal.is_file() else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--variants", default="fp16,ewq-0.65,bnb-nf4,gguf-q8_0")
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args()
    select = ("--ewq-variants", options.variants)
    moments = random.Random(options.seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        smoke(Path(folder) / "warm-up", *select)
        begin = time.monotonic()
        status, output = smoke(Path(folder) / "whole", *select)
        duration_s = time.monotonic() - begin
        if status:
            sys.exit(output)
        expected = records(stored(Path(folder) / "whole")[-1])
        attempt = 0
        while sum(len(each["kept_at_kills"]) for each in outcomes) < options.kills:
            attempt += 1
            storage = Path(folder) / f"killed-{attempt}"
            # Every other run is killed a second time while it resumes.
            times = 1 + attempt % 2
            chosen = [moments.uniform(0, duration_s) for _ in range(times)]
            outcome = one_run(storage, select, chosen, expected)
            if outcome:
                outcomes.append(outcome)
    good = [each for each in outcomes if "output" not in each]
    json.dump({
        "variants": options.variants, "measurements": len(expected), "runs": len(outcomes),
        "kills": sum(len(each["kept_at_kills"]) for each in outcomes),
        "undisturbed_s": round(duration_s, 1), "good": len(good),
        "kills_after_a_measurement": sum(
            kept > 0 for each in outcomes for kept in each["kept_at_kills"]
        ),
        "outcomes": outcomes,
    }, sys.stdout, indent=1)  # fmt: skip
    sys.stdout.write("\n")
    sys.exit(len(good) < len(outcomes))


if __name__ == "__main__":
    main()
