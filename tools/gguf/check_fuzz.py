"""Damaged GGUF files: how many are refused where, and how many are evaluated.

    python tools/gguf/check_fuzz.py MODEL [--files 200]

Run from the repository's root. Ends with an error if this process would not survive one of them.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from ewq.backends.llama_cpp import LlamaCppOptions, load_llama_cpp
from ewq.checkpoint.gguf_header import read_header
from ewq.errors import EwqError
from ewq.files import cache_dir
from ewq.gguf import cached_gguf
from tests.gguf.mutations import mutate


def outcome(path):
    try:
        read_header(path)
    except EwqError as error:
        return "refused by the header check", str(error)
    try:
        model = load_llama_cpp(path, None, LlamaCppOptions(threads=1))
    except EwqError as error:
        return "aborted in the child" if "aborts" in str(error) else "refused by llama.cpp", str(
            error
        )
    try:
        model.last_logprobs([3, 4, 5], [[6], [7, 8]], [1, 2])
        return "evaluated", ""
    except EwqError as error:
        return "refused while computing", str(error)
    finally:
        model.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()
    sound = cached_gguf(options.model, "F16", cache_dir("gguf"))
    data = sound.read_bytes()
    header_bytes = len(data) - read_header(sound).weights_bytes
    counts, reasons = Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.gguf"
        for seed in range(options.files):
            kind, damaged = mutate(data, header_bytes, seed)
            path.write_bytes(damaged)
            result, reason = outcome(path)
            counts[result] += 1
            reasons.setdefault(f"{result}, {kind}", reason.replace(str(path), "FILE"))
    json.dump({"files": options.files, **counts, "examples": reasons}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
