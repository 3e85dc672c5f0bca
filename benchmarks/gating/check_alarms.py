"""Do the gates catch a planted defect, and nothing where there is none?

    python benchmarks/gating/check_alarms.py [--repeats 20] [--variants fp16,ewq-0.65,...]

In a scratch clone of the last commit: runs the smoke tier, repeats it ``--repeats`` times with
``--benchmark-compare`` (no alarm may sound), then once for each defect, planted in a commit of its
own, which both ``--benchmark-compare`` and ``ewq compare`` must catch. Prints one JSON document;
the exit status is 1 where an alarm was false or missing.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from runs import ROOT, smoke, stored

QUANTIZE = "            result.update(operation.convert({name: value}, model=model, **kwargs))\n"
SCALED = """\
            if isinstance(module_of(model, name), {kind}):
                factor = {factor}
                several = isinstance(value, list)
                value = [factor * each for each in value] if several else factor * value
"""
DEFECTS = {
    "NF4 scales 2 % too large": ("bnb-nf4", SCALED.format(kind="Linear4bit", factor=1.02)),
    "int8 scales 2 % too large": ("bnb-int8", SCALED.format(kind="Linear8bitLt", factor=1.02)),
    "NF4 scales 1 % too small": ("bnb-nf4", SCALED.format(kind="Linear4bit", factor=0.99)),
}
"""Name -> the variant that has nothing but what the defect spoils, and the lines planted."""
QUALITY = ("perplexity", "divergence")


def git(checkout, *arguments):
    subprocess.run(["git", *arguments], cwd=checkout, check=True, capture_output=True)


def plant(checkout, name, lines):
    """Commit a defect on a branch of its own, from the sound commit."""
    git(checkout, "checkout", "-q", "-B", "defect", "sound")
    file = checkout / "ewq" / "quantizer" / "ops.py"
    text = file.read_text()
    if QUANTIZE not in text:
        sys.exit(f"{file} has changed: the defect cannot be planted")
    file.write_text(text.replace(QUANTIZE, lines + QUANTIZE))
    git(checkout, "-c", "user.name=check", "-c", "user.email=check@localhost",
        "commit", "-qam", name)  # fmt: skip


def compare(before, after):
    """Exit status of ``ewq compare`` and the metrics that it calls worse."""
    command = [sys.executable, "-m", "ewq", "compare", str(before), str(after), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, alarms(done.stdout)


def alarms(document):
    """``variant/task/metric`` of every change judged a failure."""
    changes = json.loads(document)["rows"]
    return [f"{each['variant']}/{each['task']}/{each['metric']}" for each in changes
            if each["verdict"] == "fail"]  # fmt: skip


def caught(seen, variant):
    """Whether both ways name a quality task of the variant that the defect spoils."""
    in_pytest = any(f"test_{task}[{variant}]" in line for line in seen["said"] for task in QUALITY)
    prefixes = tuple(f"{variant}/{task}/" for task in QUALITY)
    in_compare = any(each.startswith(prefixes) for each in seen["worse"])
    return bool(in_pytest and in_compare and seen["exit"] == 1 and seen["compare"] == 1)


def said(output):
    """The lines in which the run says what failed."""
    lines = [line for line in output.splitlines() if re.search(r"^(FAILED|E  .*baseline)", line)]
    return [re.sub(r"\x1b\[[0-9;]*m", "", line)[:300] for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--variants", default="fp16,ewq-0.65,bnb-int8,bnb-nf4,gguf-q8_0")
    options = parser.parse_args()
    select = ("--ewq-variants", options.variants)
    with tempfile.TemporaryDirectory() as folder:
        checkout, storage = Path(folder) / "clone", Path(folder) / "storage"
        git(ROOT, "clone", "-q", str(ROOT), str(checkout))
        git(checkout, "branch", "sound")
        status, output = smoke(storage, *select, checkout=checkout)
        if status:
            sys.exit(output)
        first = stored(storage)[0]
        repeats, defects = [], []
        for _ in range(options.repeats):
            status, output = smoke(storage, *select, "--benchmark-compare", checkout=checkout)
            code, worse = compare(first, stored(storage)[-1])
            seen = {"exit": status, "said": said(output), "compare": code, "worse": worse}
            repeats.append(seen)
        for name, (variant, lines) in DEFECTS.items():
            plant(checkout, name, lines)
            status, output = smoke(storage, *select, "--benchmark-compare", checkout=checkout)
            code, worse = compare(first, stored(storage)[-1])
            seen = {"exit": status, "said": said(output), "compare": code, "worse": worse}
            defects.append({"defect": name, "caught": caught(seen, variant), **seen})
    false = [each for each in repeats if each["exit"] or each["compare"]]
    missed = [each["defect"] for each in defects if not each["caught"]]
    json.dump({
        "variants": options.variants, "repeats": len(repeats), "false_alarms": len(false),
        "false": false, "defects": defects, "missed": missed,
    }, sys.stdout, indent=1)  # fmt: skip
    sys.stdout.write("\n")
    sys.exit(bool(false or missed))


if __name__ == "__main__":
    main()
