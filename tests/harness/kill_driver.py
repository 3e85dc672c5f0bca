"""Kill runs of the fake project at random moments and resume them; print what came of it as JSON.

Started by ``test_resume.py`` as a process of its own, which imports the heavy libraries once and
forks a child for every run: a killed run then costs a second instead of five.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ARGUMENTS = [
    *("-q", "-p", "ewq.pytest_plugin", "-p", "no:cacheprovider", "benchmarks"),
    # This process has imported what pytest would like to rewrite.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
    *("--ewq-tier", "smoke", "--ewq-variants", "fp16,ewq-0.5", "--benchmark-autosave"),
]


def warm_up() -> None:
    import accelerate  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats.mstats  # noqa: F401
    import torch._dynamo
    import torch._inductor.utils  # noqa: F401
    import transformers
    import transformers.modeling_utils  # noqa: F401

    import ewq.gating.compare
    import ewq.harness.measuring
    import ewq.harness.terminal
    import ewq.tasks.divergence
    import ewq.tasks.memory
    import ewq.tasks.mmlu
    import ewq.tasks.mmlu_cloze
    import ewq.tasks.perplexity
    import ewq.tasks.samples
    import ewq.tasks.throughput  # noqa: F401


def run(folder: Path, *extra: str, kill_after_s: float | None = None) -> int:
    """One pytest run in a forked child; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        with Path("output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        import pytest

        os._exit(int(pytest.main([*ARGUMENTS, *extra])))
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def project(root: Path, name: str) -> Path:
    from tests.harness.fakes import write_project

    folder = root / name
    folder.mkdir()
    write_project(folder, **{"ewq-0.5": {"noise": 0.3}})
    return folder


def stored(folder: Path) -> dict:
    """``variant/task`` -> record of the newest whole stored run."""
    for path in sorted(folder.glob(".benchmarks/*/*.json"), reverse=True):
        with contextlib.suppress(ValueError):
            run_json = json.loads(path.read_text())
            records = (bench["extra_info"]["ewq"] for bench in run_json["benchmarks"])
            return {f"{each['variant']}/{each['task']}": each for each in records}
    return {}


def main(root: Path, kills: int, seed: int) -> None:
    from tests.harness.fakes import finished

    warm_up()
    moments = random.Random(seed)
    reference = project(root, "uninterrupted")
    started_s = time.monotonic()
    outcomes = {"reference": run(reference), "expected": stored(reference), "runs": []}
    duration_s = time.monotonic() - started_s
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        folder = project(root, f"killed-{attempt}")
        died = run(folder, kill_after_s=moments.uniform(0, duration_s)) == -signal.SIGKILL
        begun = (folder / ".benchmarks" / "journal.sqlite").is_file()
        code = run(folder, "--ewq-resume") if begun else run(folder)
        killed += died
        outcomes["runs"].append(
            {
                "killed": died,
                "resumed": begun,
                "exit": code,
                "finished": finished(folder / ".benchmarks" / "journal.previous.sqlite"),
                "records": stored(folder),
            }
        )
    json.dump(outcomes | {"duration_s": duration_s}, sys.__stdout__)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
