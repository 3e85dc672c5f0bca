"""Command-line options and ini keys, translated once into one typed value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ewq.data.lm_eval import FILES
from ewq.errors import InputError
from ewq.tasks.table import CHAT, DIVERGENCE_AT, OF_FAMILY
from ewq.tasks.tiers import TIERS
from ewq.variants import (
    CACHES,
    KV,
    LLAMA_CPP,
    Variant,
    default_names,
    engine_of,
    find_variant,
    in_run_order,
    parse_factor,
    with_cache,
)

_DECODE_MODES = ("auto", "eager", "static", "graph", "compile")
_CHOICES = {
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "tier": tuple(TIERS),
    "decode": _DECODE_MODES,
}

# name, default, metavar, help: each becomes --ewq-NAME and the ini key ewq_NAME.
_VALUES: tuple[tuple[str, str, str, str], ...] = (
    ("model", "", "MODEL", "hub id or local folder (default: the embedded SmolLM2-135M)"),
    ("factors", "1.0,0.8,0.65,0.5", "X,Y", "factors of the default EWQ variants"),
    ("variants", "", "A,B", "variants by name, .gguf path, plan file or hf:FOLDER (default: all)"),
    ("device", "auto", "DEVICE", "cpu, cuda, cuda:1, cuda:all (default: cuda when there is one)"),
    ("dtype", "auto", "DTYPE", "auto, float32, float16 or bfloat16 (auto: float32 on a CPU)"),
    ("tier", "quick", "TIER", "smoke, quick or full"),
    ("mmlu", "", "DIR|hub", "MMLU as a folder of CSV files or from the hub"),
    ("texts", "", "DIR|hub", "texts for perplexity: folder, file, or WikiText-2 from the hub"),
    ("lm-eval", "", "A,B", "tasks of lm-evaluation-harness: names, groups or .yaml files"),
    ("depth", "", "N,N", "measure divergence after so many tokens too, such as 4096,32768"),
    ("calibration", "", "DIR", "text that fitted plans are made on (default: ewq's own)"),
    ("thresholds", "", "FILE", "thresholds.toml (default: beside the benchmarks)"),
    ("baseline", "", "RUN", "stored run to gate against: a file, a run number or a commit"),
    ("workers", "", "N|ADDRESS", "measure on N Ray workers, or a cluster: auto, ray://HOST:PORT"),
    ("kv", "", "TYPES", f"types of cache of GGUF variants: {', '.join(CACHES)} (default: f16)"),
    ("decode", "auto", "MODE", f"decode loop of transformers variants: {', '.join(_DECODE_MODES)}"),
)
_FLAGS: tuple[tuple[str, str], ...] = (
    ("chat", "measure divergence on FP16's own answers to chat prompts too"),
    ("require-baseline", "fail before loading a model when there is no valid baseline"),
    ("resume", "continue the interrupted run with what is missing"),
    ("confirm", "measure a speed that fails its gate again; the second measurement decides"),
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
    lm_eval: dict[str, str]
    """Task of ours -> what lm-eval knows it by, or its file."""
    depth: tuple[int, ...]
    """Tokens of context after which divergence is measured too."""
    calibration: str
    thresholds: Path | None
    baseline: str
    workers: str
    decode: str
    chat: bool
    require_baseline: bool
    resume: bool
    confirm: bool
    no_save: bool
    dry_run: bool

    @classmethod
    def from_pytest(cls, config: pytest.Config) -> Options:
        """Read and check every option; an InputError names one whose value means nothing."""
        given = {_key(name): _read(config, name) for name, *_ in (*_VALUES, *_FLAGS)}
        for option, allowed in _CHOICES.items():
            if given[option] not in allowed:
                choice = f"choose one of {', '.join(allowed)}"
                raise InputError(f"--ewq-{option} {given[option]!r}: {choice}")
        for option in ("mmlu", "texts", "thresholds", "calibration"):
            path = given[option]
            published = path == "hub" and option in ("mmlu", "texts")
            if path and not published and not Path(path).expanduser().exists():
                raise InputError(f"--ewq-{option} {path}: no such file or folder")
        _check_workers(given["workers"])
        factors = [parse_factor(t) for t in given.pop("factors").split(",") if t.strip()]
        named = [name.strip() for name in given["variants"].split(",") if name.strip()]
        caches = [kind.strip().lower() for kind in given.pop("kv").split(",") if kind.strip()]
        found = [find_variant(name) for name in named or default_names(factors)]
        variants = [each for one in found for each in _with_caches(one, caches)]
        given["variants"], given["variants_named"] = _without_repeats(variants), bool(named)
        given["lm_eval"] = _lm_eval(given["lm_eval"].split(","))
        given["depth"] = _depths(given["depth"])
        thresholds = given["thresholds"]
        given["thresholds"] = Path(thresholds).expanduser() if thresholds else None
        return cls(**given)

    def variant(self, name: str) -> Variant:
        """The run's variant of that name, or one that only a test asks for."""
        known = {variant.name: variant for variant in self.variants}
        return known.get(name) or find_variant(name)

    def members(self, family: str | None) -> list[str]:
        """What was asked for of a family of tasks."""
        if family == DIVERGENCE_AT:
            return [*map(str, self.depth), *[CHAT] * self.chat]
        return [name.partition(OF_FAMILY)[2] for name in self.lm_eval]


def add_options(parser: pytest.Parser) -> None:
    """Register every option, each also as an ini key with underscores."""
    group = parser.getgroup("ewq", "entropy-weighted quantization")
    for name, default, metavar, text in _VALUES:
        group.addoption(f"--ewq-{name}", default=None, metavar=metavar, help=text)
        parser.addini(f"ewq_{_key(name)}", text, default=default)
    for name, text in _FLAGS:
        group.addoption(f"--ewq-{name}", action="store_true", default=None, help=text)
        parser.addini(f"ewq_{_key(name)}", text, type="bool", default=False)


def _check_workers(asked: str) -> None:
    if not asked:
        return
    if not (asked == "auto" or asked.startswith("ray://") or (asked.isdigit() and int(asked))):
        raise InputError(f"--ewq-workers {asked!r}: give a number, auto or ray://HOST:PORT")
    if not find_spec("ray"):
        raise InputError("--ewq-workers needs Ray: pip install 'ewq[ray]'")


def _with_caches(variant: Variant, caches: Sequence[str]) -> list[Variant]:
    """A GGUF variant with each type of cache that is asked for, unless its name says one."""
    named = KV in variant.name or engine_of(variant.name) != LLAMA_CPP
    return [variant] if named or not caches else [with_cache(variant, kind) for kind in caches]


def _key(name: str) -> str:
    return name.replace("-", "_")


def _read(config: pytest.Config, name: str) -> Any:
    """A string, or a boolean for a flag."""
    given = config.getoption(f"ewq_{_key(name)}")
    return config.getini(f"ewq_{_key(name)}") if given is None else given


def _depths(given: str) -> tuple[int, ...]:
    depths = [depth.strip() for depth in given.split(",") if depth.strip()]
    if wrong := [depth for depth in depths if not (depth.isdecimal() and int(depth) >= 2)]:
        raise InputError(f"--ewq-depth {wrong[0]!r}: give numbers of tokens, such as 4096,32768")
    return tuple(dict.fromkeys(map(int, depths)))


def _lm_eval(specs: list[str]) -> dict[str, str]:
    """Each by its name, a file by its own."""
    named: dict[str, str] = {}
    for spec in filter(None, map(str.strip, specs)):
        path, in_file = Path(spec).expanduser(), spec.endswith(FILES)
        if in_file and not path.is_file():
            raise InputError(f"--ewq-lm-eval {spec}: no such file")
        name = f"lm_eval{OF_FAMILY}{path.stem if in_file else spec}"
        if named.setdefault(name, spec) != spec:
            raise InputError(f"--ewq-lm-eval: {named[name]} and {spec} make one {name}: rename one")
    return named


def _without_repeats(variants: list[Variant]) -> tuple[Variant, ...]:
    different = dict.fromkeys(variants)
    by_name = {variant.name: variant for variant in different}
    for variant in different:
        if variant != by_name[variant.name]:
            raise InputError(f"two different files make a variant {variant.name}: rename one")
    return in_run_order(list(different))
