"""``ewq fit`` and ``ewq imatrix``: the best file of a size, and what it is made with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ewq.checkpoint.opening import open_checkpoint
from ewq.cli import terminal
from ewq.cli.export import Rounding
from ewq.codec import encode
from ewq.errors import InputError
from ewq.files import check_output
from ewq.planning.plan import BITSANDBYTES
from ewq.planning.sizes import Card, find_card

if TYPE_CHECKING:
    from ewq.fit.run import Fitted

Model = Annotated[str, typer.Argument(help="Hub id or model folder.")]
Sequences = Annotated[int, typer.Option(min=1, help="Calibration sequences.")]
Tokens = Annotated[int, typer.Option("--sequence-tokens", min=2, help="Tokens in each sequence.")]
Seed = Annotated[int, typer.Option(help="Of the sequences drawn and the labels sampled.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Cache = Annotated[bool, typer.Option(help="Use and keep what was measured.")]


def fit(
    model: Model,
    out: Annotated[
        Path, typer.Option("-o", "--output", help="A .gguf file, or for bitsandbytes a new folder.")
    ],
    size: terminal.Size = None,
    bpw: terminal.Bpw = None,
    kld: terminal.Kld = None,
    vram: terminal.Memory = None,
    context: terminal.Context = None,
    like: terminal.Like = None,
    engine: Annotated[str, typer.Option(help="gguf or bitsandbytes.")] = "gguf",
    granularity: Annotated[
        str, typer.Option(help="What gets one type: tensor, kind (all ffn_down, ...) or block.")
    ] = "tensor",
    versus: Annotated[
        str, typer.Option(help="Recipes to measure beside it, such as Q4_K_M,Q5_K_M.")
    ] = "",
    rounding: Rounding = "nearest",
    texts: Annotated[
        Path | None, typer.Option(help="Texts to measure on (default: ewq's own, other ones).")
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens measured of each domain.")] = 512,
    calibration: terminal.Text = None,
    sequences: Sequences = 32,
    sequence_tokens: Tokens = 512,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: Cache = True,
    as_json: terminal.AsJson = False,
) -> None:
    """Make the best file of a size: measure, plan, export, read back and compare."""
    from ewq.checkpoint.embedded import fixture_path
    from ewq.data.texts import load_texts
    from ewq.fit.run import Aim
    from ewq.fit.run import fit as run_fit
    from ewq.sensitivity.calibration import Calibrating

    check_output(out, folder=engine == BITSANDBYTES)
    terminal.quiet_transformers()
    if engine == BITSANDBYTES and rounding == "gptq":
        raise InputError("--rounding gptq rounds GGUF files: leave it out for bitsandbytes")
    if vram and size:
        raise InputError("give --size or --vram, not both")
    progress = terminal.terminal_progress()
    card = find_card(model, vram, context, engine, progress)
    made = run_fit(
        model,
        out,
        Aim(card.room if card else size, bpw, kld, like, granularity),
        engine=engine,
        how=Calibrating(calibration, sequences, sequence_tokens, seed, device, cache),
        versus=[name.strip() for name in versus.split(",") if name.strip()],
        texts=load_texts(texts or fixture_path("texts")),
        tokens_per_domain=text_tokens,
        gptq=rounding == "gptq",
        progress=progress,
    )
    terminal.show(_document(made), _lines(made, card), as_json=as_json)


def imatrix(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--output", help="The .gguf file to write.")],
    calibration: terminal.Text = None,
    sequences: Sequences = 32,
    sequence_tokens: Tokens = 512,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: Cache = True,
) -> None:
    """Write an importance matrix for llama.cpp's quantizer: mean squared inputs by column."""
    from ewq.fit.prepare import calibrate, converted, write_importance
    from ewq.sensitivity.calibration import Calibrating
    from ewq.sensitivity.measure import measure_sensitivity

    check_output(out)
    terminal.quiet_transformers()
    progress = terminal.terminal_progress()
    how = Calibrating(calibration, sequences, sequence_tokens, seed, device, cache)
    checkpoint = open_checkpoint(model, progress)
    text, base = calibrate(checkpoint, how), converted(checkpoint, progress)
    sensitivity = measure_sensitivity(checkpoint, text, how, progress)
    write_importance(sensitivity, base, out)
    print(f"{out}: {len(text.sequences)} sequences, {text.tokens:,} tokens")
    for note in sensitivity.notes():
        print(f"note: {note}")


def _lines(made: Fitted, card: Card | None) -> Iterator[str]:
    plan = made.plan
    yield f"{made.path}: {plan.bits_per_weight:.3f} bits per weight; {terminal.types_text(plan)}"
    headings = f"{'size':>11} {'KLD, nats':>17} {'same top':>9} {'perplexity':>11}"
    yield f"  {'':<44} {headings}{' fits' * bool(card)}"
    for one in made.measured:
        fits = "" if card is None else "  yes" if one.nbytes <= card.room else "   no"
        kld, top = one.metrics["kld_mean"], one.metrics["top1_agreement"].value
        change = math.expm1(one.metrics["ln_ppl_ratio"].value)
        figures = f"{kld.value:>8.5f} ± {kld.stderr or 0:.5f} {top:>9.2%} {change:>+11.2%}"
        yield f"  {one.label:<44} {terminal.size_text(one.nbytes):>11} {figures}{fits}"
    if card:
        yield str(card)
    yield from (f"note: {note}" for note in made.notes)
    yield sentence(made)


def sentence(made: Fitted) -> str:
    """What one can quote: size, divergence with its error, and the rivals."""
    (own, *rivals), expected = made.measured, made.plan.expected_kld
    assert expected is not None  # every fitted plan has one
    metrics, kld = own.metrics, own.metrics["kld_mean"]
    said = (
        f"{own.label} ({terminal.size_text(own.nbytes)}) diverges from the unquantized model by "
        f"{kld.value:.4f} ± {kld.stderr or 0:.4f} nats per token on text it was not calibrated on "
        f"(expected {expected.value:.4f} ± {expected.stderr:.4f}); it agrees on the likeliest "
        f"token in {metrics['top1_agreement'].value:.1%} of cases, and its perplexity changes by "
        f"{math.expm1(metrics['ln_ppl_ratio'].value):+.1%}"
    )
    for rival in rivals:
        theirs = rival.metrics["kld_mean"].value
        said += f"; {rival.label} ({terminal.size_text(rival.nbytes)}) diverges by {theirs:.4f}"
    off = kld.value / expected.value - 1 if expected.value else 0.0
    if abs(off) > 0.25:
        said += f". Note that this is {off:+.0%} from what was expected"
    return said + "."


def _document(made: Fitted) -> dict[str, Any]:
    measured = [
        {"label": one.label, "bytes": one.nbytes, "metrics": encode(one.metrics)}
        for one in made.measured
    ]
    found = {"path": str(made.path), "plan": made.plan.to_json(), "measured": measured}
    return {**found, "notes": list(made.notes), "sentence": sentence(made)}
