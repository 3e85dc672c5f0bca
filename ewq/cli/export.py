"""``ewq export`` and ``ewq quantize``: a GGUF file, or a folder that ``from_pretrained`` opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ewq.checkpoint.opening import open_checkpoint
from ewq.cli.terminal import AsJson, Bpw, Size, Text, quiet_transformers, show, terminal_progress
from ewq.errors import InputError
from ewq.files import check_output
from ewq.planning.plan import QuantizationPlan, read_plan

if TYPE_CHECKING:
    from ewq.gguf.report import ExportReport

Factor = Annotated[float | None, typer.Option(help="4-bit starts below mean - FACTOR * std.")]
SHOWN = 3
Rounding = Annotated[
    Literal["nearest", "gptq"],
    typer.Option(help="gptq: let errors of columns cancel on the calibration text (GGUF only)."),
]


def export(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, or .gguf file.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The .gguf file to write.")],
    type_name: Annotated[
        str | None, typer.Option("--type", help="F16, BF16, Q8_0, Q6_K, Q4_K_M, ...")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan made by `ewq plan`.")] = None,
    factor: Factor = None,
    target_bpw: Bpw = None,
    target_size: Size = None,
    types: Annotated[
        str, typer.Option(help="Type per precision, such as raw=F16,8bit=Q8_0,4bit=Q4_K.")
    ] = "",
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix made by llama-imatrix.")
    ] = None,
    rounding: Rounding = "nearest",
    calibration: Text = None,
    print_command: Annotated[
        bool, typer.Option(help="Print the same export as a shell script and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert and quantize with llama.cpp; the file appears once it is complete and checked."""
    from ewq.gguf.export import export_command, export_gguf
    from ewq.gguf.recipe import make_recipe, parse_types

    check_output(out)
    progress, named = terminal_progress(), parse_types(types)
    if sum(each is not None for each in (type_name, plan, factor, target_bpw, target_size)) > 1:
        raise InputError("give only one of --type, --plan, --factor, --target-bpw, --target-size")
    planned = read_plan(plan) if plan else _planned(model, factor, target_bpw, target_size, "gguf")
    recipe, calibrated = make_recipe(type_name, planned, named, imatrix), None
    if rounding == "gptq":
        from ewq.fit.prepare import calibrate
        from ewq.sensitivity.calibration import Calibrating

        calibrated = calibrate(open_checkpoint(model, progress), Calibrating(calibration))
    elif calibration:
        raise InputError("--calibration is read with --rounding gptq only")
    if print_command:
        if calibrated:
            raise InputError("llama.cpp's own programs cannot do --rounding gptq: leave it out")
        script = export_command(model, out, recipe, progress)
        print(json.dumps({"command": script}) if as_json else script)
        return
    report = export_gguf(model, out, recipe, calibration=calibrated, progress=progress)
    show(report.to_json(), _lines(report), as_json=as_json)


def _planned(
    model: str, factor: float | None, target_bpw: float | None, size: int | None, target: str
) -> QuantizationPlan | None:
    """The plan of a rule, if one is given."""
    from ewq.planning.analysis import analyze

    if factor is target_bpw is size is None:
        return None
    analysis = analyze(model, progress=terminal_progress())
    return analysis.plan(factor, target_bpw=target_bpw, target_size_bytes=size, target=target)


def _lines(report: ExportReport) -> Iterator[str]:
    """The export for people: size, types, what fell back and what that cost."""
    size = f"{report.file_bytes:,} bytes, {report.bits_per_weight:.3f} bits per weight"
    yield f"{report.path}: {size}"
    for name, nbytes in report.bytes_by_type.items():
        count = sum(tensor.stored == name for tensor in report.tensors)
        yield f"  {name:<6} {count:5d} tensors {nbytes:>15,} bytes"
    yield from (f"note: {note}" for note in report.notes)
    yield from (f"  {t.name}: {t.wanted} -> {t.stored}" for t in report.fallbacks[:SHOWN])
    if (hidden := len(report.fallbacks) - SHOWN) > 0:
        yield f"  ... and {hidden} more"


def quantize(
    model: Annotated[str, typer.Argument(help="Hub id or model folder.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="A new folder.")],
    plan: Annotated[Path | None, typer.Option(help="A plan file; or give a rule.")] = None,
    factor: Factor = None,
    target_bpw: Bpw = None,
    target_size: Size = None,
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

    if sum(each is not None for each in (plan, factor, target_bpw, target_size)) != 1:
        raise InputError("give exactly one of --plan, --factor, --target-bpw, --target-size")
    target = "nf4-double" if double_quant else "nf4"
    planned = plan or _planned(model, factor, target_bpw, target_size, target)
    assert planned is not None  # one of them was given
    config = EwqConfig(
        planned,
        quant_type=quant_type,
        double_quant=double_quant,
        block_size=block_size,
        compute_dtype=compute_dtype,
        int8_threshold=int8_threshold,
    )
    quiet_transformers()
    made = quantize_to_folder(model, config, out, device=device, progress=terminal_progress())
    sizes = {"weights_bytes": made.weights_bytes, "planned_bytes": made.plan.size_bytes}
    names = {"folder": str(made.folder), "plan": made.plan.digest}
    document = {**names, **sizes, "notes": list(made.notes)}
    foreseen = f"(planned {made.plan.size_bytes:,})"
    lines = [f"{made.folder}: {made.weights_bytes:,} bytes of weights {foreseen}"]
    lines += [f"note: {note}" for note in made.notes]
    lines += ["open it with: import ewq.quantizer; AutoModelForCausalLM.from_pretrained(FOLDER)"]
    show(document, lines, as_json=as_json)
