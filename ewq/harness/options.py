"""Command-line options and ini keys, translated once into one typed value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ewq.errors import InputError
from ewq.tasks.tiers import TIERS
from ewq.variants import Variant, default_names, find_variant, in_run_order, parse_factor

_DTYPES = ("auto", "float32", "float16", "bfloat16")

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
    (
        "decode",
        "auto",
        "MODE",
        "decode loop of transformers variants: auto, eager, static, graph, compile",
    ),
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
        """Read and check every option.

        Raises:
            InputError: a value that means nothing; the message names the option.
        """
        read = _reader(config)
        factors = [parse_factor(text) for text in read("factors").split(",") if text.strip()]
        named = [name.strip() for name in read("variants").split(",") if name.strip()]
        variants = [find_variant(name) for name in named or default_names(factors)]
        thresholds = read("thresholds")
        return cls(
            model=read("model"),
            variants=_without_repeats(variants),
            variants_named=bool(named),
            device=read("device"),
            dtype=_one_of("dtype", read("dtype"), _DTYPES),
            tier=_one_of("tier", read("tier"), tuple(TIERS)),
            mmlu=_folder_or_hub("mmlu", read("mmlu")),
            texts=_folder_or_hub("texts", read("texts")),
            calibration=read("calibration"),
            thresholds=_existing("thresholds", thresholds) if thresholds else None,
            baseline=read("baseline"),
            decode=_one_of(
                "decode", read("decode"), ("auto", "eager", "static", "graph", "compile")
            ),
            require_baseline=_flag(config, "require-baseline"),
            resume=_flag(config, "resume"),
            no_save=_flag(config, "no-save"),
            dry_run=_flag(config, "dry-run"),
        )


def add_options(parser: pytest.Parser) -> None:
    """Register every option, each also as an ini key with underscores."""
    group = parser.getgroup("ewq", "entropy-weighted quantization")
    for name, default, metavar, text in _VALUES:
        group.addoption(f"--ewq-{name}", default=None, metavar=metavar, help=text)
        parser.addini(f"ewq_{name}", text, default=default)
    for name, text in _FLAGS:
        group.addoption(f"--ewq-{name}", action="store_true", default=None, help=text)
        parser.addini(f"ewq_{name.replace('-', '_')}", text, type="bool", default=False)


def _reader(config: pytest.Config) -> Callable[[str], str]:
    def read(name: str) -> str:
        given: str | None = config.getoption(f"ewq_{name}")
        return given if given is not None else str(config.getini(f"ewq_{name}"))

    return read


def _flag(config: pytest.Config, name: str) -> bool:
    key = f"ewq_{name.replace('-', '_')}"
    given: Any = config.getoption(key)
    return bool(config.getini(key) if given is None else given)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError(f"--ewq-{option} {value!r}: choose one of {', '.join(allowed)}")
    return value


def _existing(option: str, value: str) -> Path:
    path = Path(value).expanduser()
    if not path.exists():
        raise InputError(f"--ewq-{option} {value}: no such file or folder")
    return path


def _folder_or_hub(option: str, value: str) -> str:
    if value and value != "hub":
        _existing(option, value)
    return value


def _without_repeats(variants: list[Variant]) -> tuple[Variant, ...]:
    for name in {variant.name for variant in variants}:
        recipes = {variant.recipe for variant in variants if variant.name == name}
        if len(recipes) > 1:
            raise InputError(f"two different files make a variant called {name}: rename one")
    return in_run_order(list({variant.name: variant for variant in variants}.values()))
