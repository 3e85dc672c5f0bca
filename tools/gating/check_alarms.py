"""Do the gates catch a planted defect, and nothing where there is none?

    python tools/gating/check_alarms.py [--repeats 20] [--variants A,B] [--docs] [--json FILE]

In a scratch clone of the last commit: runs the smoke tier, repeats it ``--repeats`` times with
``--benchmark-compare`` (no alarm may sound), then once for each defect, planted in a commit of its
own, which both ``--benchmark-compare`` and ``ewq compare`` must catch. Prints one line; the exit
status is 1 where an alarm was false or missing.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from textwrap import indent

from runs import ROOT, conclude, environment, parser, smoke, stored

QUANTIZE = "if isinstance(module, Linear8bitLt):\n                result[name] ="
"""Where a weight has been found that is to be quantized."""
SCALED = """\
if type(module).__name__ == "{kind}":
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
    file = checkout / "ewq" / "quantizer" / "modules.py"
    text = file.read_text()
    if QUANTIZE not in text:
        sys.exit(f"{file} has changed: the defect cannot be planted")
    before, after = text.split(QUANTIZE)
    margin = before.rsplit("\n", 1)[1]
    planted = indent(lines, margin).removeprefix(margin)
    file.write_text(before + planted + margin + QUANTIZE + after)
    git(checkout, "-c", "user.name=check", "-c", "user.email=check@localhost",
        "commit", "-qam", name)  # fmt: skip


def compare(before, after, checkout):
    """Exit status of ``ewq compare`` and what it calls worse: ``variant/task/metric`` -> how."""
    command = [sys.executable, "-m", "ewq", "compare", str(before), str(after), "--format", "json"]
    done = subprocess.run(
        command, cwd=checkout, env=environment(checkout), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if not done.stdout:
        sys.exit(done.stderr)
    rows = json.loads(done.stdout)["rows"]
    return done.returncode, {
        f"{each['variant']}/{each['task']}/{each['metric']}": each["sentence"]
        for each in rows if each["verdict"] == "fail"
    }  # fmt: skip


def repeat(checkout, storage, select):
    """One more run against the newest baseline and against the first run, and what was said."""
    before = stored(storage)
    status, output = smoke(storage, *select, "--benchmark-compare", checkout=checkout)
    first, last = before[0], stored(storage)[-1]
    if status not in (0, 1) or last == before[-1]:
        # Neither an alarm nor its absence: something ended the run itself.
        sys.exit(f"a run ended with exit status {status} and says nothing:\n{output[-3000:]}")
    code, worse = compare(first, last, checkout)
    verdicts = Counter(json.loads(last.read_text())["ewq"]["verdicts"].values())
    return {"exit": status, "said": said(output), "compare": code, "worse": worse,
            "verdicts": dict(verdicts)}  # fmt: skip


def said(output):
    """The lines in which the run says what failed."""
    lines = [line for line in output.splitlines() if re.search(r"^(FAILED|E  .*baseline)", line)]
    return [re.sub(r"\x1b\[[0-9;]*m", "", line)[:300] for line in lines]


def caught(seen, variant):
    """Whether both ways name a quality task of the variant that the defect spoils."""
    in_pytest = any(f"test_{task}[{variant}]" in line for line in seen["said"] for task in QUALITY)
    prefixes = tuple(f"{variant}/{task}/" for task in QUALITY)
    in_compare = any(each.startswith(prefixes) for each in seen["worse"])
    return bool(in_pytest and in_compare and seen["exit"] == 1 and seen["compare"] == 1)


def try_out(folder, options):
    """What the repetitions and the runs with a defect said."""
    checkout, storage = folder / "clone", folder / "storage"
    select = ("--ewq-variants", options.variants)
    git(ROOT, "clone", "-q", str(ROOT), str(checkout))
    git(checkout, "branch", "sound")
    status, output = smoke(storage, *select, checkout=checkout)
    if status:
        sys.exit(output)
    repeats = [repeat(checkout, storage, select) for _ in range(options.repeats)]
    defects = []
    for name, (variant, lines) in DEFECTS.items():
        plant(checkout, name, lines)
        seen = repeat(checkout, storage, select)
        defects.append({"defect": name, "caught": caught(seen, variant), **seen})
    return repeats, defects


def report(options, repeats, defects):
    false = [each for each in repeats if each["exit"] or each["compare"]]
    missed = [each for each in defects if not each["caught"]]
    counts = sum((Counter(each["verdicts"]) for each in repeats), Counter())
    lines = [
        f"{len(repeats)} repetitions gave {len(false)} false alarms, and "
        f"{len(defects) - len(missed)} of {len(defects)} planted defects were caught by both "
        "`pytest --benchmark-compare` and `ewq compare`",
        f"Variants: {options.variants.replace(',', ', ')}. Verdicts of all repetitions: "
        + ", ".join(f"{number} {verdict}" for verdict, number in counts.items()) + ".",
        "",
        "| defect | caught | metric | as `ewq compare` tells it |",
        "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for each in defects:
        for metric, sentence in (each["worse"] or {"none": ""}).items():
            told = sentence.split(" [", 1)[0].replace("|", "\\|")
            yes = "yes" if each["caught"] else "no"
            lines.append(f"| {each['defect']} | {yes} | {metric} | {told} |")
    lines += ["", "False alarms:", ""] if false else []
    lines += [f"- {'; '.join(each['said']) or list(each['worse'])}" for each in false]
    seen = {"variants": options.variants, "repeats": repeats, "defects": defects}
    conclude(options, "Planted defects and repetitions", not false and not missed, lines, seen)


def main():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--variants", default="fp16,ewq-0.65,bnb-int8,bnb-nf4,gguf-q8_0")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repeats, defects = try_out(Path(folder), options)
    report(options, repeats, defects)


if __name__ == "__main__":
    main()
