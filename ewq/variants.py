"""The variants a model is measured as: what each is called and how its weights are stored.

Names are storage keys and parameter ids (``test_mmlu[ewq-0.65]``): renaming one loses its history.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from ewq.errors import InputError

REFERENCE = "fp16"
"""The variant that every paired figure is measured against."""
TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"

_FACTOR_VARIANT = re.compile(r"(gguf-)?ewq-(\d+(?:\.\d+)?)")
_PLAN_VARIANT = re.compile(r"(gguf-)?ewq-(?=.*[A-Za-z])[\w.+-]+")
"""Plans given as files; the letter keeps a mistyped factor from being taken for one."""
_FIT_VARIANT = re.compile(r"(gguf-)?fit-([a-z0-9][a-z0-9_.]*)")
_GGUF_PLAN = "gguf:"
_HF, HF = "hf:", "hf-"
"""How a model folder is given, and how the name of its variant begins."""
CACHES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types of llama.cpp's cache of keys and values; the first is what a plain name means."""
KV = "+kv-"
"""Between the name of a GGUF variant and the type of its cache."""
_CACHE = re.compile(rf"{re.escape(KV)}({'|'.join(CACHES)})$")
_SIZE = re.compile(r"(\d{1,18}(?:\.\d*)?) *(?:([KMG])(I)?)?B?")


class Precision(StrEnum):
    """Of a block or weight: ``EIGHT_BIT`` is LLM.int8 or Q8_0, ``FOUR_BIT`` NF4 or Q4_K."""

    RAW = "raw"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"


@dataclass(frozen=True)
class Raw:
    """The checkpoint's own 16-bit weights in transformers."""


@dataclass(frozen=True)
class Uniform:
    """Every block at one precision with bitsandbytes: the controls."""

    precision: Precision


@dataclass(frozen=True)
class Planned:
    """A plan, with bitsandbytes or as a mixed GGUF."""

    plan: float | Path
    """Made by the factor rule at this factor, or read from a file."""


@dataclass(frozen=True)
class Fitted:
    """The plan of least expected divergence; as a GGUF with an importance matrix."""

    size_bytes: int | None = None
    like: str | None = None


@dataclass(frozen=True)
class GgufType:
    """llama.cpp's own recipe of this name."""

    type_name: str
    imatrix: bool = False


@dataclass(frozen=True)
class GgufFile:
    """A GGUF that exists already; the tokenizer is the model's."""

    path: Path


@dataclass(frozen=True)
class HfFolder:
    """A model folder, or an adapter's, that somebody made; the tokenizer is the model's."""

    source: str
    """Hub id or local folder."""


Recipe = Raw | Uniform | Planned | Fitted | GgufType | GgufFile | HfFolder


@dataclass(frozen=True)
class Variant:
    """A recipe under a name, which tells the engine: see :func:`engine_of`."""

    name: str
    recipe: Recipe
    cache: str = CACHES[0]


FIXED: Mapping[str, Recipe] = {
    REFERENCE: Raw(),
    "bnb-int8": Uniform(Precision.EIGHT_BIT),
    "bnb-nf4": Uniform(Precision.FOUR_BIT),
    "gguf-f16": GgufType("F16"),
    "gguf-q8_0": GgufType("Q8_0"),
    "gguf-q4_k_m": GgufType("Q4_K_M"),
    "gguf-q4_k_m-imatrix": GgufType("Q4_K_M", imatrix=True),
    "gguf-fit-q8_0": Fitted(like="Q8_0"),
    "gguf-fit-q4_k_m": Fitted(like="Q4_K_M"),
}
"""The variants whose names are theirs alone; plans and files are named by what they are."""


def default_names(factors: Sequence[str]) -> tuple[str, ...]:
    """The variants of a run that names none: reference, EWQ, controls, GGUF."""
    others = [name for name in FIXED if name != REFERENCE]
    return (REFERENCE, *(f"ewq-{factor}" for factor in factors), *others, "gguf-ewq-0.65")


def parse_size(text: str) -> int:
    """Bytes of ``5GB`` (10**9), ``4.5GiB`` (2**30) or a plain number; else an InputError."""
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise InputError(f"invalid size {text!r}: expected a size such as 5GB, 4.5GiB or 800MB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMG".index(prefix or " "))


def parse_factor(text: str) -> str:
    """A factor as it stands in names, ``0.65``; an InputError if it is no number from zero up."""
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        raise InputError(f"invalid factor {text!r}: expected a number such as 0.65")
    return str(float(text))


def find_variant(name: str) -> Variant:
    """The variant called ``name``, or the GGUF or plan file at that path; else an InputError.

    ``plans/6bpw.json`` is the variant ``ewq-6bpw``, ``gguf:plans/6bpw.json`` ``gguf-ewq-6bpw``.
    """
    if cache := _CACHE.search(name):
        return with_cache(find_variant(name.removesuffix(cache[0])), cache[1])
    if name in FIXED:
        return Variant(name, FIXED[name])
    if match := _FACTOR_VARIANT.fullmatch(name):
        factor = parse_factor(match[2])
        return Variant(f"{match[1] or ''}ewq-{factor}", Planned(float(factor)))
    if match := _FIT_VARIANT.fullmatch(name):
        # ``q5_k_m`` is a recipe whose size is taken, ``100mb`` and ``1.5gib`` are sizes.
        like = match[2].upper() if match[1] and not match[2][0].isdigit() else None
        return Variant(name, Fitted(None if like else parse_size(match[2]), like))
    if name.startswith(_HF):
        return _folder_variant(name)
    if name.lower().endswith(".gguf"):
        path = _existing_file(name, name)
        return Variant(path.name, GgufFile(path))
    if name.lower().endswith(".json"):
        return _plan_variant(name)
    made = "ewq-FACTOR, gguf-ewq-FACTOR, fit-SIZE, gguf-fit-SIZE, FILE.gguf, PLAN.json"
    known = f"{', '.join(FIXED)}, {made}, gguf:PLAN.json, hf:FOLDER, GGUF+kv-q8_0"
    raise InputError(f"unknown variant {name!r}; known: {known}")


def with_cache(variant: Variant, cache: str) -> Variant:
    """The variant with a cache of this type; an InputError where there is no such."""
    if cache not in CACHES:
        raise InputError(f"no cache type {cache!r}; give some of {', '.join(CACHES)}")
    if engine_of(variant.name) != LLAMA_CPP:
        raise InputError(f"{variant.name}: only GGUF variants take a type of cache")
    name = variant.name + f"{KV}{cache}" * (cache != CACHES[0])
    return replace(variant, name=name, cache=cache)


def _plan_variant(name: str) -> Variant:
    path = _existing_file(name, name.removeprefix(_GGUF_PLAN))
    engine = "gguf-" if name.startswith(_GGUF_PLAN) else ""
    variant = Variant(f"{engine}ewq-{path.stem.removeprefix('ewq-')}", Planned(path))
    if not _PLAN_VARIANT.fullmatch(variant.name):
        advice = "rename the file to letters, digits, dots and dashes, with at least one letter"
        raise InputError(f"variant {name!r} is named after its plan file: {advice}")
    return variant


def _folder_variant(name: str) -> Variant:
    """Whether there is such a folder, here or on the hub, is asked when it is opened."""
    path = Path(name.removeprefix(_HF))
    if not path.name.strip(".") or path.suffix.lower() == ".gguf":
        raise InputError(f"variant {name!r}: give hf:FOLDER or hf:OWNER/NAME; files go without hf:")
    return Variant(HF + re.sub(r"[^\w.+-]+", "-", path.name), HfFolder(str(path)))


def _existing_file(name: str, path: str) -> Path:
    found = Path(path).expanduser()
    try:
        if not found.is_file():
            raise InputError(f"variant {name!r}: no such file")
    except OSError as error:
        raise InputError(f"variant {name!r}: {error.strerror}") from error
    return found.resolve()


def is_plan_name(name: str) -> bool:
    """Whether a variant of this name was made by a plan: by a factor or from a file."""
    return bool(_FACTOR_VARIANT.fullmatch(name) or _PLAN_VARIANT.fullmatch(name))


def is_fit_name(name: str) -> bool:
    """Whether a variant of this name is a plan of least expected divergence."""
    return bool(_FIT_VARIANT.fullmatch(_CACHE.sub("", name)))


def engine_of(name: str) -> str:
    """``transformers`` or ``llama.cpp``, from a variant's name alone."""
    native = name.startswith("gguf-") or _CACHE.sub("", name.lower()).endswith(".gguf")
    return LLAMA_CPP if native else TRANSFORMERS


_TABLE = (REFERENCE, "ewq", *(name for name in FIXED if name != REFERENCE), "gguf-ewq")
"""Names, or their beginnings before a factor, in the order of tables."""


def table_place(name: str) -> tuple[int, float]:
    """A sort key: the reference, EWQ from the largest factor down, controls, GGUF, others."""
    name = _CACHE.sub("", name)
    if match := _FACTOR_VARIANT.fullmatch(name) or _PLAN_VARIANT.fullmatch(name):
        factor = match[2] if match.re is _FACTOR_VARIANT else 0
        return (_TABLE.index(f"{match[1] or ''}ewq"), -float(factor))
    if name not in _TABLE and _FIT_VARIANT.fullmatch(name):
        return (_TABLE.index("gguf-fit-q4_k_m"), 1.0)
    return (_TABLE.index(name) if name in _TABLE else len(_TABLE), 0.0)


def in_run_order(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The reference first, since the others are paired with it; otherwise as given."""
    return tuple(sorted(variants, key=lambda variant: variant.name != REFERENCE))
