"""Is anything lost or measured twice when the smoke run is killed and resumed?

    python benchmarks/gating/check_kills.py [--kills 20] [--variants fp16,ewq-0.65,...]

Runs the smoke tier once undisturbed; then, for each kill, sends SIGKILL at a random moment,
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


def one_kill(storage, select, moment_s, expected):
    """Outcome of one killed and resumed run; ``None`` where it ended before the kill."""
    status, _ = smoke(storage, *select, kill_after_s=moment_s)
    if status != -signal.SIGKILL:
        return None
    journal = storage / "journal.jsonl"
    kept = journal.read_bytes().count(b'"finished"') if journal.is_file() else 0
    status, output = smoke(storage, *select, *(["--ewq-resume"] if journal.is_file() else []))
    runs = stored(storage)
    same = bool(runs) and records(runs[-1]) == expected
    once = finished(storage) == dict.fromkeys(expected, 1)
    outcome = {"moment_s": round(moment_s, 2), "kept": kept, "exit": status}
    outcome |= {"same_records": same, "each_measured_once": once}
    return outcome if status == 0 and same and once else outcome | {"output": output[-2000:]}


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
        while len(outcomes) < options.kills:
            attempt += 1
            storage = Path(folder) / f"killed-{attempt}"
            outcome = one_kill(storage, select, moments.uniform(0, duration_s), expected)
            if outcome:
                outcomes.append(outcome)
    good = [each for each in outcomes if "output" not in each]
    json.dump({
        "variants": options.variants, "measurements": len(expected), "kills": len(outcomes),
        "undisturbed_s": round(duration_s, 1), "good": len(good),
        "after_the_journal_began": sum(each["kept"] > 0 for each in outcomes),
        "outcomes": outcomes,
    }, sys.stdout, indent=1)  # fmt: skip
    sys.stdout.write("\n")
    sys.exit(len(good) < len(outcomes))


if __name__ == "__main__":
    main()
