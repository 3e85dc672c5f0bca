"""``ewq quantize``: a folder that ``from_pretrained`` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ewq.cli.terminal import AsJson, quiet_transformers, show, terminal_progress
from ewq.files import check_output


def quantize(
    model: Annotated[str, typer.Argument(help="Hub id or model folder.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="A new folder.")],
    plan: Annotated[Path | None, typer.Option(help="A plan file; or give a rule.")] = None,
    factor: Annotated[
        float | None, typer.Option(help="4-bit starts below mean - FACTOR * std.")
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(help="Bits per weight of the whole model, never exceeded.")
    ] = None,
    quant_type: Annotated[str, typer.Option(help="nf4 or fp4.")] = "nf4",
    double_quant: Annotated[
        bool | None, typer.Option(help="Quantize the 4-bit scales too (default: as planned).")
    ] = None,
    block_size: Annotated[int, typer.Option(help="4-bit values that share a scale.")] = 64,
    compute_dtype: Annotated[
        str, typer.Option(help="Of 4-bit products: auto, float32, bfloat16, float16.")
    ] = "auto",
    int8_threshold: Annotated[
        float, typer.Option(help="Outliers from here on stay unquantized; 0: none, faster.")
    ] = 6.0,
    device: Annotated[str, typer.Option(help="Where weights are quantized.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write a quantized copy of a model, weights streamed one by one."""
    check_output(out, folder=True)
    from ewq.quantizer.config import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    config = EwqConfig(
        plan,
        factor=factor,
        target_bpw=target_bpw,
        quant_type=quant_type,
        double_quant=double_quant,
        block_size=block_size,
        compute_dtype=compute_dtype,
        int8_threshold=int8_threshold,
    )
    quiet_transformers()
    made = quantize_to_folder(model, config, out, device=device, progress=terminal_progress())
    document = {
        "folder": str(made.folder),
        "plan": made.plan.digest,
        "weights_bytes": made.weights_bytes,
        "planned_bytes": made.plan.size_bytes,
        "notes": list(made.notes),
    }
    planned = f"(planned {made.plan.size_bytes:,})"
    lines = [f"{made.folder}: {made.weights_bytes:,} bytes of weights {planned}"]
    lines += [f"note: {note}" for note in made.notes]
    lines += ["open it with: import ewq.quantizer; AutoModelForCausalLM.from_pretrained(FOLDER)"]
    show(document, lines, as_json=as_json)
