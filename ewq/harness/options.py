"""Command-line options and ini keys, translated once into one typed value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ewq.errors import InputError
from ewq.tasks.tiers import TIERS
from ewq.variants import Variant, default_names, find_variant, in_run_order, parse_factor

_DTYPES = ("auto", "float32", "float16", "bfloat16")
_DECODE_MODES = ("auto", "eager", "static", "graph", "compile")

# name, default, metavar, help: each becomes --ewq-NAME and the ini key ewq_NAME.
_VALUES: tuple[tuple[str, str, str, str], ...] = (
    ("model", "", "MODEL", "hub id or local folder (default: the embedded SmolLM2-135M)"),
    ("factors", "1.0,0.8,0.65,0.5", "X,Y", "factors of the default EWQ variants"),
    ("variants", "", "A,B", "variants by name, .gguf path or plan file (default: all)"),
    ("device", "auto", "DEVICE", "cpu, cuda, cuda:1, cuda:all (default: cuda when there is one)"),
    ("dtype", "auto", "DTYPE", "auto, float32, float16 or bfloat16 (auto: float32 on a CPU)"),
    ("tier", "quick", "TIER", "smoke, quick or full"),
    ("mmlu", "", "DIR|hub", "MMLU as a folder of CSV files or from the hub"),
    ("texts", "", "DIR|hub", "texts for perplexity: folder, file, or WikiText-2 from the hub"),
    ("calibration", "", "DIR", "text that fitted plans are made on (default: ewq's own)"),
    ("thresholds", "", "FILE", "thresholds.toml (default: beside the benchmarks)"),
    ("baseline", "", "RUN", "stored run to gate against: a file, a run number or a commit"),
    ("decode", "auto", "MODE", f"decode loop of transformers variants: {', '.join(_DECODE_MODES)}"),
)
_FLAGS: tuple[tuple[str, str], ...] = (
    ("require-baseline", "fail before loading a model when there is no valid baseline"),
    ("resume", "continue the interrupted run with what is missing"),
    ("no-save", "measure without storing the run"),
    ("dry-run", "say what would be measured, and measure nothing"),
)


@dataclass(frozen=True)
class Options:
    """What a run was asked to do."""

    model: str
    """Empty for the embedded model."""
    variants: tuple[Variant, ...]
    variants_named: bool
    """Whether the user named them: then a missing library is a failure, not a skip."""
    device: str
    dtype: str
    tier: str
    mmlu: str
    texts: str
    calibration: str
    thresholds: Path | None
    baseline: str
    decode: str
    require_baseline: bool
    resume: bool
    no_save: bool
    dry_run: bool

    @classmethod
    def from_pytest(cls, config: pytest.Config) -> Options:
        """Read and check every option; an InputError names one whose value means nothing."""
        read = partial(_read, config)
        factors = [parse_factor(text) for text in read("factors").split(",") if text.strip()]
        named = [name.strip() for name in read("variants").split(",") if name.strip()]
        thresholds = _existing("thresholds", read("thresholds"))
        return cls(
            model=read("model"),
            variants=_without_repeats([find_variant(n) for n in named or default_names(factors)]),
            variants_named=bool(named),
            device=read("device"),
            dtype=_one_of("dtype", read("dtype"), _DTYPES),
            tier=_one_of("tier", read("tier"), tuple(TIERS)),
            mmlu=_existing("mmlu", read("mmlu"), "hub"),
            texts=_existing("texts", read("texts"), "hub"),
            calibration=read("calibration"),
            thresholds=Path(thresholds).expanduser() if thresholds else None,
            baseline=read("baseline"),
            decode=_one_of("decode", read("decode"), _DECODE_MODES),
            require_baseline=read("require-baseline"),
            resume=read("resume"),
            no_save=read("no-save"),
            dry_run=read("dry-run"),
        )


def add_options(parser: pytest.Parser) -> None:
    """Register every option, each also as an ini key with underscores."""
    group = parser.getgroup("ewq", "entropy-weighted quantization")
    for name, default, metavar, text in _VALUES:
        group.addoption(f"--ewq-{name}", default=None, metavar=metavar, help=text)
        parser.addini(_key(name), text, default=default)
    for name, text in _FLAGS:
        group.addoption(f"--ewq-{name}", action="store_true", default=None, help=text)
        parser.addini(_key(name), text, type="bool", default=False)


def _key(name: str) -> str:
    return f"ewq_{name.replace('-', '_')}"


def _read(config: pytest.Config, name: str) -> Any:
    """A string, or a boolean for a flag."""
    given = config.getoption(_key(name))
    return config.getini(_key(name)) if given is None else given


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError(f"--ewq-{option} {value!r}: choose one of {', '.join(allowed)}")
    return value


def _existing(option: str, value: str, *besides: str) -> str:
    """The path that was given, if any, unless it is one of the words that stand ``besides``."""
    if value and value not in besides and not Path(value).expanduser().exists():
        raise InputError(f"--ewq-{option} {value}: no such file or folder")
    return value


def _without_repeats(variants: list[Variant]) -> tuple[Variant, ...]:
    different = dict.fromkeys(variants)
    by_name = {variant.name: variant for variant in different}
    for variant in different:
        if variant != by_name[variant.name]:
            raise InputError(f"two different files make a variant {variant.name}: rename one")
    return in_run_order(list(different))
