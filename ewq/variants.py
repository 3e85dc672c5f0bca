"""The variants a model is measured as: what each is called and how its weights are stored.

A variant is a name and a recipe, nothing loaded. Names are storage keys and
parameter ids (``test_mmlu[ewq-0.65]``): renaming one loses its history.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ewq.errors import InputError
from ewq.precision import Precision

REFERENCE = "fp16"
"""The variant that every paired figure is measured against."""

_FACTOR_VARIANT = re.compile(r"(gguf-)?ewq-(\d+(?:\.\d+)?)")
_PLAN_VARIANT = re.compile(r"(gguf-)?ewq-(?=.*[A-Za-z])[\w.+-]+")
"""Plans given as files; the letter keeps a mistyped factor from being taken for one."""
_FIT_VARIANT = re.compile(r"(gguf-)?fit-([a-z0-9][a-z0-9_.]*)")
_GGUF_PLAN = "gguf:"

FactorOrFile = float | Path
"""Where a plan comes from: the factor rule at this factor, or a plan file."""


@dataclass(frozen=True)
class Raw:
    """The checkpoint's own 16-bit weights in transformers."""


@dataclass(frozen=True)
class Uniform:
    """Every block at one precision with bitsandbytes: the controls."""

    precision: Precision


@dataclass(frozen=True)
class Planned:
    """A plan, with bitsandbytes."""

    plan: FactorOrFile


@dataclass(frozen=True)
class Fitted:
    """The plan of least expected divergence in so many bytes, with bitsandbytes."""

    size_bytes: int


@dataclass(frozen=True)
class GgufType:
    """llama.cpp's own recipe of this name."""

    type_name: str
    imatrix: bool = False
    """With the importance matrix that fitted variants have."""


@dataclass(frozen=True)
class GgufFitted:
    """The plan of least expected divergence, as a GGUF with an importance matrix."""

    like: str | None
    """llama.cpp's recipe whose bytes are not exceeded; or a size."""
    size_bytes: int | None = None


@dataclass(frozen=True)
class GgufPlanned:
    """A plan, as a mixed GGUF."""

    plan: FactorOrFile


@dataclass(frozen=True)
class GgufFile:
    """A GGUF that exists already; the tokenizer is the model's."""

    path: Path


Recipe = Raw | Uniform | Planned | Fitted | GgufType | GgufPlanned | GgufFitted | GgufFile


@dataclass(frozen=True)
class Variant:
    """A named recipe."""

    name: str
    recipe: Recipe


FIXED: Mapping[str, Recipe] = {
    REFERENCE: Raw(),
    "bnb-int8": Uniform(Precision.EIGHT_BIT),
    "bnb-nf4": Uniform(Precision.FOUR_BIT),
    "gguf-f16": GgufType("F16"),
    "gguf-q8_0": GgufType("Q8_0"),
    "gguf-q4_k_m": GgufType("Q4_K_M"),
    "gguf-q4_k_m-imatrix": GgufType("Q4_K_M", imatrix=True),
    "gguf-fit-q8_0": GgufFitted("Q8_0"),
    "gguf-fit-q4_k_m": GgufFitted("Q4_K_M"),
}
"""The variants whose names are theirs alone; plans and files are named by what they are."""
_DEFAULT_GGUF_FACTOR = "0.65"


def default_names(factors: Sequence[str]) -> tuple[str, ...]:
    """The variants of a run that names none: reference, EWQ, controls, GGUF."""
    planned = [f"ewq-{factor}" for factor in factors]
    gguf = [name for name in FIXED if name.startswith("gguf-")]
    return (REFERENCE, *planned, "bnb-int8", "bnb-nf4", *gguf, f"gguf-ewq-{_DEFAULT_GGUF_FACTOR}")


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of ``5GB`` (10**9), ``4.5GiB`` (2**30), ``800MB`` or a plain number.

    Raises:
        InputError: not a size.
    """
    number = text.strip().upper()
    unit = next((unit for unit in sorted(UNITS, key=len)[::-1] if number.endswith(unit)), "")
    try:
        size_bytes = int(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size_bytes = -1
    if size_bytes < 0:
        raise InputError(f"invalid size {text!r}: expected a size such as 5GB, 4.5GiB or 800MB")
    return size_bytes


def parse_factor(text: str) -> str:
    """A factor as it stands in names: ``0.65``.

    Raises:
        InputError: not a finite number of zero or more.
    """
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        raise InputError(f"invalid factor {text!r}: expected a number such as 0.65")
    return str(float(text))


def find_variant(name: str) -> Variant:
    """The variant called ``name``, or the GGUF or plan file at that path.

    ``plans/6bpw.json`` is the variant ``ewq-6bpw``; ``gguf:plans/6bpw.json`` is the same plan as
    a GGUF, ``gguf-ewq-6bpw``. Both match ``-k ewq``.

    Raises:
        InputError: no such variant; the message lists those there are.
    """
    if name in FIXED:
        return Variant(name, FIXED[name])
    if match := _FACTOR_VARIANT.fullmatch(name):
        recipe = GgufPlanned if match[1] else Planned
        factor = parse_factor(match[2])
        return Variant(f"{match[1] or ''}ewq-{factor}", recipe(float(factor)))
    if match := _FIT_VARIANT.fullmatch(name):
        return Variant(name, _fitted(match[1] is not None, match[2]))
    if name.lower().endswith(".gguf"):
        path = _existing_file(name, name)
        return Variant(path.name, GgufFile(path))
    if name.endswith(".json"):
        return _plan_variant(name)
    known = [*FIXED, "ewq-FACTOR", "gguf-ewq-FACTOR", "fit-SIZE", "gguf-fit-SIZE", "FILE.gguf"]
    known += ["PLAN.json", "gguf:PLAN.json"]
    raise InputError(f"unknown variant {name!r}; known: {', '.join(known)}")


def _fitted(as_gguf: bool, aim: str) -> Recipe:
    """``q5_k_m`` is a recipe whose size is taken, ``100mb`` and ``1.5gib`` are sizes."""
    if as_gguf and not aim[0].isdigit():
        return GgufFitted(aim.upper())
    size_bytes = parse_size(aim)
    return GgufFitted(None, size_bytes) if as_gguf else Fitted(size_bytes)


def _plan_variant(name: str) -> Variant:
    path = _existing_file(name, name.removeprefix(_GGUF_PLAN))
    prefix, recipe = ("gguf-", GgufPlanned) if name.startswith(_GGUF_PLAN) else ("", Planned)
    variant = Variant(f"{prefix}ewq-{path.stem.removeprefix('ewq-')}", recipe(path))
    if not _PLAN_VARIANT.fullmatch(variant.name):
        raise InputError(
            f"variant {name!r} is named after its plan file: rename the file to letters, digits, "
            "dots and dashes, with at least one letter"
        )
    return variant


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
    return bool(_FIT_VARIANT.fullmatch(name))


def engine_of(name: str) -> str:
    """``transformers`` or ``llama.cpp``, from a stored variant's name alone."""
    by_llama_cpp = name.startswith("gguf-") or name.lower().endswith(".gguf")
    return "llama.cpp" if by_llama_cpp else "transformers"


_TABLE = (REFERENCE, "ewq", *(name for name in FIXED if name != REFERENCE), "gguf-ewq")
"""Names, or their beginnings before a factor, in the order of tables."""


def table_place(name: str) -> tuple[int, float]:
    """A sort key for tables, whatever order variants were measured in.

    The reference, EWQ from the largest factor to the smallest and from plan files, its controls,
    GGUF; then files and names that this version does not know. A stable sort leaves equals as they
    came.
    """
    if match := _FACTOR_VARIANT.fullmatch(name):
        return (_TABLE.index(f"{match[1] or ''}ewq"), -float(match[2]))
    if match := _PLAN_VARIANT.fullmatch(name):
        return (_TABLE.index(f"{match[1] or ''}ewq"), 0.0)
    if name not in _TABLE and _FIT_VARIANT.fullmatch(name):
        return (_TABLE.index("gguf-fit-q4_k_m"), 1.0)
    return (_TABLE.index(name) if name in _TABLE else len(_TABLE), 0.0)


def in_run_order(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The reference first, since the others are paired with it; otherwise as given."""
    return tuple(sorted(variants, key=lambda variant: variant.name != REFERENCE))
