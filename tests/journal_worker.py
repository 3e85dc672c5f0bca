"""A run that does nothing but use the journal; started and killed by ``test_journal.py``."""

import sys
import time
from contextlib import closing
from pathlib import Path

from ewq.storage.environment import RunIdentity
from ewq.storage.journal import Journal

KEYS = tuple((f"variant-{i}", "task") for i in range(12))
IDENTITY = RunIdentity("sha256:1", {"tier": "smoke"}, {"device": "cpu", "ewq_code": "1"})


def payload(key):
    return {"record": {"variant": key[0], "items": "A" * 3000}, "data": [0.25, 0.5]}


def main(path: Path) -> None:
    journal = Journal.resume(path, IDENTITY) if path.exists() else Journal.create(path, IDENTITY)
    with closing(journal):
        for key in KEYS:
            if key not in journal.completed:
                journal.started(key)
                time.sleep(0.01)
                journal.finished(key, payload(key))


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    main(Path(sys.argv[1]))
