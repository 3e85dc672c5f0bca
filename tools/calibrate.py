"""Tolerances from measured variance: what repeated runs of the same code differ by.

    python tools/calibrate.py                      measure, write docs/results/calibration.md
    python tools/calibrate.py RUN RUN ... [--toml] only the table of runs stored already

Quality on one device repeats to the last bit, so two runs show that it does; clocks and memory
do not, and are measured in ten processes of their own. Run it alone on the machine: some fifteen
minutes on two cores for the embedded model. A tolerance is three standard deviations of a
difference, ``3 sqrt(2) sd`` of the logarithms, never below the built-in one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from calibration.report import ROOT, document
from calibration.spread import ADVISED_RUNS, spreads, to_table, to_toml

from ewq.errors import EwqError
from ewq.storage.runs import Run, read_run, stored_runs

RESULTS = ROOT / "docs" / "results" / "calibration.md"
QUALITY_RUNS = 2
QUALITY = "(perplexity or divergence or mmlu_cloze)"
SPEED = "(throughput or memory)"


def measure(storage: Path, selection: str, options: argparse.Namespace) -> Run:
    """One run in a process of its own.

    Raises:
        EwqError: nothing was stored.
    """
    command = [sys.executable, "-m", "pytest", "benchmarks/", "-q", "-k", selection]
    command += [f"--benchmark-storage={storage}", "--benchmark-autosave"]
    command += ["--ewq-variants", options.variants, "--ewq-tier", options.tier]
    command += ["--ewq-model", options.model] if options.model else []
    before = set(stored_runs(storage))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    stored = [path for path in stored_runs(storage) if path not in before]
    # A limit that fails is no obstacle: the limits are what is being calibrated.
    if not stored or not read_run(stored[0]).complete:
        raise EwqError(f"a run could not be completed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return read_run(stored[0])


def calibrate(options: argparse.Namespace) -> None:
    """Measure everything and write the page."""
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # First, since it also fills the caches of analyses and GGUF files.
        quality = _repeated(Path(folder) / "quality", QUALITY, QUALITY_RUNS, options)
        speed = _repeated(Path(folder) / "speed", SPEED, options.repeats, options)
        command = " ".join(["python tools/calibrate.py", *sys.argv[1:]])
        text = document(speed, quality, time.monotonic() - begin_s, command)
    options.output.write_text(text, encoding="utf-8")
    tight = text.count("**too tight**")
    sys.stdout.write(f"{options.output}: {tight} tolerances of thresholds.toml are too tight\n")


def _repeated(storage: Path, selection: str, times: int, options: argparse.Namespace) -> list[Run]:
    runs = []
    for number in range(1, times + 1):
        begin_s = time.monotonic()
        runs.append(measure(storage, selection, options))
        sys.stderr.write(f"{storage.name} {number}/{times}: {time.monotonic() - begin_s:.0f} s\n")
    return runs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="stored runs of the same code")
    parser.add_argument("--toml", action="store_true", help="tables for thresholds.toml")
    parser.add_argument("--repeats", type=int, default=ADVISED_RUNS)
    parser.add_argument("--variants", default="fp16,ewq-0.65,gguf-q4_k_m")
    parser.add_argument("--model", default="", help="as --ewq-model (default: the embedded one)")
    parser.add_argument("--tier", default="quick")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Calibrate, or read the runs named on the command line and print the proposal."""
    options = _options()
    try:
        if not options.runs:
            calibrate(options)
            return
        found = spreads([read_run(path) for path in options.runs])
    except EwqError as error:
        sys.exit(f"calibrate: {error}")
    device = str(read_run(options.runs[0]).machine.get("device")) if found else ""
    text = to_toml(found, device) if options.toml else to_table(found, len(options.runs))
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
