"""The README of a quantized folder: what it is and how to open it."""

from __future__ import annotations

import json
import re
from collections import Counter

from ewq import __version__
from ewq.planning.plan import QuantizationPlan
from ewq.precision import Precision
from ewq.quantizer.options import Options

CARD = "README.md"
STORED = {
    Precision.RAW: "as in the original",
    Precision.EIGHT_BIT: "8 bits, LLM.int8",
    Precision.FOUR_BIT: "4 bits",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(plan: QuantizationPlan, options: Options, weights_bytes: int) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    return "\n".join([*_front_matter(plan), *_opening(plan), *_facts(plan, options, weights_bytes)])


def _front_matter(plan: QuantizationPlan) -> list[str]:
    base = [f"base_model: {plan.model}"] if _HUB_ID.fullmatch(plan.model) else []
    return ["---", "library_name: transformers", *base, "tags:", "- ewq", "- bitsandbytes", "---"]


def _opening(plan: QuantizationPlan) -> list[str]:
    name = plan.model.rstrip("/").rpartition("/")[2]
    return [
        f"# {name}, quantized by an entropy-weighted plan",
        "",
        "Opening this model needs the package `ewq`, which teaches transformers the method:",
        "",
        "```",
        "pip install ewq",
        "```",
        "",
        "```python",
        "import ewq.quantizer  # before from_pretrained",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", device_map="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "Without that import transformers reports that the quantization type `ewq` is unknown",
        "and would read packed weights as if they were plain ones: do not use the result.",
        "",
    ]


def _facts(plan: QuantizationPlan, options: Options, weights_bytes: int) -> list[str]:
    counts = Counter(plan.weights.values())
    rows = [f"| {STORED[of]} | {counts[of]} |" for of in Precision if counts[of]]
    return [
        "## What was done",
        "",
        f"- original: `{plan.model}`, fingerprint `{plan.fingerprint}`",
        f"- rule: `{json.dumps(dict(plan.rule))}`, scorer `{plan.scorer}`, per {plan.granularity}",
        f"- plan: `plan.json`, digest `{plan.digest}`",
        f"- options: `{json.dumps(options.to_json())}`",
        f"- size in memory: {weights_bytes:,} bytes (planned: {plan.size_bytes:,})",
        f"- made by ewq {__version__}",
        "",
        "| linear weights of the decoder blocks | count |",
        "| --- | ---: |",
        *rows,
        "",
        "Embeddings, norms, biases and the output head are as in the original. Weights that",
        "bitsandbytes cannot quantize (experts stacked into one parameter) are too, whatever",
        "the plan says; then the size in memory is above the planned one.",
        "",
    ]
