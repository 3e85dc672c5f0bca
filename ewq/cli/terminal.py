"""What commands write on the terminal: progress, plans in a few lines, one JSON document."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ewq.planning.plan import QuantizationPlan
from ewq.progress import Progress, progress_on
from ewq.report.document import terminal_line
from ewq.variants import Precision, parse_size

Bpw = Annotated[
    float | None, typer.Option(help="Bits per weight of the whole model, never exceeded.")
]
Size = Annotated[
    int | None,
    typer.Option(parser=parse_size, metavar="SIZE", help="Of the whole model, such as 5GB."),
]
Like = Annotated[
    str | None,
    typer.Option(metavar="RECIPE", help="No larger than llama.cpp's recipe, such as Q4_K_M."),
]
Kld = Annotated[float | None, typer.Option(help="Smallest expected below so many nats per token.")]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_size, metavar="SIZE", help="The card's memory, for weights and the rest."
    ),
]
Context = Annotated[
    int | None, typer.Option(metavar="TOKENS", min=1, help="With a card's memory (default: 8192).")
]
Text = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text file or folder of them (default: ewq's own text)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
_COLUMNS = 80
_MARKS = dict(zip((*Precision, None), "█▄▁?", strict=True))
"""The taller, the more bits; ``?`` is a block whose weights differ."""


def terminal_progress() -> Progress:
    """Progress on stderr."""
    write = partial(print, end="", file=sys.stderr, flush=True)
    return progress_on(sys.stderr.isatty(), write, lambda: shutil.get_terminal_size().columns)


def quiet_transformers() -> None:
    """transformers draws its bars into pipes as well; only a terminal gets one."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def show(document: object, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result: as one JSON document, or in lines for people."""
    for line in [json.dumps(document, indent=1)] if as_json else map(terminal_line, lines):
        print(line)


def legend() -> str:
    """What the marks of a strip mean."""
    return "  ".join(f"{mark} {of}" for of, mark in _MARKS.items() if of)


def size_text(size_bytes: int) -> str:
    """A size in GB, or in MB where GB would be mostly zeros."""
    return f"{size_bytes / 1e6:.3f} MB" if size_bytes < 5e7 else f"{size_bytes / 1e9:.3f} GB"


def strip_lines(labels: Sequence[str], plans: Sequence[QuantizationPlan]) -> Iterator[str]:
    """A mark per block, the plans one below the other; folded alike where they are too long."""
    width = max(len(label) for label in labels)
    strips = ["".join(_MARKS[block.precision] for block in plan.blocks) for plan in plans]
    rows = -(-len(strips[0]) // max(16, _COLUMNS - width - 2)) or 1
    step = -(-len(strips[0]) // rows) or 1
    for start in range(0, len(strips[0]), step):
        for label, strip in zip(labels, strips, strict=True):
            yield f"{label:<{width}}  {strip[start : start + step]}"


def rule_text(plan: QuantizationPlan) -> str:
    """The rule in a few words: ``factor 0.65``, ``target_size 9.000 GB seed 1``."""
    words = {key: str(value) for key, value in plan.rule.items()}
    size = plan.rule.get("target_size_bytes")
    if isinstance(size, int):
        words["target_size_bytes"] = size_text(size)
    if "seed" in words:
        words["seed"] = f"seed {words['seed']}"
    return " ".join(words.values())


def types_text(plan: QuantizationPlan) -> str:
    """How many tensors have each type: ``210 Q4_K, 1 Q6_K``."""
    counts = Counter(plan.types.values())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def plan_lines(plan: QuantizationPlan, numel: int) -> Iterator[str]:
    """What ``ewq plan`` prints about one plan, of a model of ``numel`` parameters."""
    made = f"{rule_text(plan)}, scorer {plan.scorer}, by {plan.granularity}"
    yield f"{plan.model} ({plan.architecture}): {made}"
    yield from _type_lines(plan) if plan.types else _precision_lines(plan)
    yield (
        f"  {size_text(plan.size_bytes)} as {plan.target}, {plan.bits_per_weight:.3f} bits per "
        f"weight over {numel / 1e6:.1f} million parameters"
    )


def _precision_lines(plan: QuantizationPlan) -> Iterator[str]:
    """A strip, how many blocks and weights have each precision, and where the scores lie."""
    yield from strip_lines([""], [plan])
    yield f"  {legend()}"
    weights = Counter(plan.weights.values())
    blocks = Counter(block.precision for block in plan.blocks)
    for precision in Precision:
        yield f"  {precision:>4}: {blocks[precision]:3d} blocks, {weights[precision]:4d} weights"
    units = "blocks" if plan.granularity == "block" else "weights"
    begins = [f"; {precision} from {least:.4g}" for precision, least in plan.thresholds.items()]
    yield f"  scores of {units}: mean {plan.mean:.4g}, std {plan.std:.3g}{''.join(begins)}"


def _type_lines(plan: QuantizationPlan) -> Iterator[str]:
    """How many tensors have each type, the blocks' bits, and what is expected."""
    yield f"  {types_text(plan)}"
    bits = [8 * block.size_bytes / block.numel for block in plan.blocks if block.numel]
    yield "  bits per weight of blocks: " + " ".join(f"{each:.1f}" for each in bits)
    if plan.expected_kld is not None:
        yield (
            f"  expected divergence {plan.expected_kld.value:.5f} ± {plan.expected_kld.stderr:.5f} "
            "nats per token, standard error over calibration sequences"
        )
