"""Tables of docs/results/fit.md from what measure.py wrote.

python tools/fit/tables.py NAME=FILE.json[,FILE.json] ...
"""

import json
import sys
from pathlib import Path

import numpy as np

HEAD = """
| {name} | bytes | KLD | expected | same top % | of the recipe's KLD |
| :-- | --: | --: | --: | --: | --: |"""


def mnat(row):
    """Mean and standard error over sequences, thousandths of a nat."""
    klds = 1e3 * np.array(row["kld"])
    return klds.mean(), klds.std(ddof=1) / np.sqrt(len(klds))


def table(name, rows):
    """All rivals at the size of one recipe; what was drawn by lot in one line."""
    yield HEAD.format(name=name)
    drawn = [row for label, row in rows.items() if label.startswith("draw")]
    for label, row in rows.items():
        if label.startswith("draw"):
            continue
        (kld, error), (ratio, spread) = mnat(row), row["ratio"]
        told = f"{ratio:.3f} ± {spread:.3f}" if spread else "1"
        cells = f"{row['bytes']:,} | {kld:.2f} ± {error:.2f} | {1e3 * row['expected']:.2f} | "
        yield f"| {label} | {cells}{100 * row['same_top']:.1f} | {told} |"
    if drawn:
        klds = sorted(mnat(row)[0] for row in drawn)
        yield f"| {len(drawn)} by lot: median (range) | | {spread_of(klds)} | | | |"


def of_bitsandbytes(name, rows):
    """Plans of the bytes of EWQ's own."""
    yield f"\n| {name} | bytes | KLD |\n| :-- | --: | --: |"
    drawn = sorted(mnat(row)[0] for label, row in rows.items() if label.startswith("random"))
    for label, row in rows.items():
        if not label.startswith("random"):
            kld, error = mnat(row)
            yield f"| {label} | {row['bytes']:,} | {kld:.2f} ± {error:.2f} |"
    if drawn:
        yield f"| {len(drawn)} at random: median (range) | | {spread_of(drawn)} |"


def spread_of(klds):
    """Median and range of sorted figures."""
    return f"{np.median(klds):.2f} ({klds[0]:.2f} to {klds[-1]:.2f})"


def main():
    """One table a model and size, smallest size first."""
    for argument in sys.argv[1:]:
        name, files = argument.split("=")
        found = [json.loads(Path(file).read_text()) for file in files.split(",")]
        sizes = {size: rows for each in found for size, rows in each["sizes"].items()}
        for size in sorted(sizes):
            sys.stdout.write("\n".join(table(f"{name}, {size}", sizes[size])) + "\n")
        for each in found:
            if "bitsandbytes" in each:
                rows = of_bitsandbytes(name, each["bitsandbytes"])
                sys.stdout.write("\n".join(rows) + "\n")
            for key in ("spearman", "file"):
                if key in each:
                    sys.stdout.write(f"\n{name}: {key} {each[key]}\n")


if __name__ == "__main__":
    main()
