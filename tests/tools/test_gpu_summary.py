"""The summary of a GPU run: ratios, shares of the bound, and what may not be compared."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.make_runs import metric, mmlu, record, stored_run

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu" / "summary.py"
GB = 1_000_000_000


def speed(variant, value, **changes):
    metrics = {"decode_tokens_per_s": metric(value, n=5, unit="tokens/s")}
    side = {"decode_mode": "static" if variant.startswith("ewq") else "graph"}
    return record("throughput", variant, metrics, side=side, **changes)


def memory(variant, weights_gb, baseline_mb, **side):
    metrics = {
        "weights_bytes": metric(weights_gb * GB, unit="bytes"),
        "vram_peak_bytes": metric(weights_gb * GB + GB, unit="bytes"),
    }
    side = {"baseline_bytes": baseline_mb * 1_000_000, **side}
    return record("memory", variant, metrics, side=side)


@pytest.fixture
def folder(tmp_path):
    figures = {
        "copy_bytes_per_s": 2000 * GB,
        "weights_counted_per_s": 61e9,
        "weights_analysed_per_s": 12e9,
    }
    (tmp_path / "ceilings.json").write_text(json.dumps(figures))
    return tmp_path


def store(folder, name, records, **session):
    shutil.copy(
        stored_run(folder / "runs" / name, records, session=session), folder / f"{name}.json"
    )


def summary(folder):
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(text, *start):
    """Cells of the first row that starts so; the table of speeds comes first."""
    begin = f"| {' | '.join(start)} |"
    found = next(line for line in text.splitlines() if line.startswith(begin))
    return [cell.strip() for cell in found.strip("|").split("|")][len(start) :]


def test_speeds_stand_beside_fp16_eager_fp16_and_the_bound(folder):
    records = [
        memory("fp16", 16, 500, torch_reserved_peak_bytes=17 * GB),
        speed("fp16", 80.0),
        memory("ewq-0.65", 10, 520),
        speed("ewq-0.65", 60.0, notes=("decode mode graph is not supported here",)),
    ]
    store(folder, "shape", records, failed={"bnb-nf4/memory": "out of memory on cuda:0"})
    store(folder, "shape-eager", [speed("fp16", 40.0)])
    text = summary(folder)
    assert row(text, "fp16")[-5:] == ["80.0", "graph", "1.00", "2.00", "0.64"]
    assert row(text, "ewq-0.65")[-5:] == ["60.0", "static", "0.75", "1.50", "0.30"]
    assert "fp16 decode, share of the bound, at least 0.60: 0.64" in text
    assert "ewq-0.65 decode to eager fp16, at least 1.3: 1.50" in text
    assert "61.0 billion weights/s counted" in text
    assert "weights analysed per second, from the page cache, at least 10 billion: 12.0" in text
    assert "differs by 20.0 MB at most" in text
    assert "fp16: NVML 17.000 GB, torch reserved 17.000 GB" in text
    assert "bnb-nf4/memory: out of memory on cuda:0" in text
    assert "ewq-0.65/throughput: decode mode graph is not supported here" in text


def test_one_row_of_an_untied_embedding_is_read_a_token(folder):
    """16-bit except in a Q8_0 file, where it takes 8.5 bits; other files' types are not known."""
    config = {"tie_word_embeddings": False, "vocab_size": 1_000_000, "hidden_size": 1000}
    (folder / "shape.config").write_text(json.dumps(config))
    store(folder, "shape", [memory("fp16", 16, 500), speed("fp16", 100.0)])
    records = [memory("gguf-q8_0", 8.0625, 500), speed("gguf-q8_0", 100.0)]
    records += [memory("gguf-q4_k_m", 4, 500), speed("gguf-q4_k_m", 100.0)]
    store(folder, "shape-gguf", records)
    text = summary(folder)
    assert row(text, "fp16")[-1] == "0.70"
    assert row(text, "gguf-q8_0")[-1] == "0.35"
    assert row(text, "gguf-q4_k_m")[-1] == "–"


def cloze(items, **settings):
    made = mmlu(items, "fp16")
    return replace(made, task="mmlu_cloze", settings={**made.settings, **settings})


def test_answers_and_figures_of_cpu_and_gpu_stand_side_by_side(folder):
    cpu = {"device": "cpu", "dtype": "float32", "decode_mode": "eager"}
    gpu = {"device": "cuda:0", "dtype": "bfloat16", "decode_mode": "graph"}
    store(folder, "agreement-cpu", [cloze("AAbC", **cpu)])
    store(folder, "agreement-gpu", [cloze("AacC", **gpu)])
    text = summary(folder)
    assert row(text, "fp16", "accuracy") == ["0.7500", "0.5000"]
    # B and C in the third place; the second question got the same answer.
    assert row(text, "fp16", "answers that differ of 4") == ["", "1"]


def test_variants_that_were_measured_apart_stand_together(folder):
    store(folder, "embedded", [memory("fp16", 1, 500), speed("fp16", 100.0)])
    store(folder, "embedded-fit", [speed("fp16", 90.0), speed("gguf-fit-q4_k_m", 200.0)])
    text = summary(folder)
    assert row(text, "fp16")[4] == "100.0"
    assert row(text, "gguf-fit-q4_k_m")[4:7] == ["200.0", "graph", "2.00"]


def test_figures_of_other_questions_are_not_compared(folder):
    store(folder, "agreement-cpu", [cloze("AAbC")])
    store(folder, "agreement-gpu", [cloze("AAbCA")])
    text = summary(folder)
    assert "fp16/mmlu_cloze: measured with different settings or data" in text
    assert "| fp16 | accuracy" not in text


def test_what_is_missing_or_damaged_is_said(folder):
    (folder / "shape.json").write_text("{")
    (folder / "ceilings.json").unlink()
    text = summary(folder)
    assert "shape.json" in text
    assert text.count("not measured") == 4
