"""What a GGUF is to be made into: one of llama.cpp's recipes, or a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import BackendUnavailable, InputError
from ewq.precision import Precision

if TYPE_CHECKING:
    from ewq.planning.plan import QuantizationPlan

DEFAULT_TYPES: Mapping[Precision, str] = {
    Precision.RAW: "F16",
    Precision.EIGHT_BIT: "Q8_0",
    Precision.FOUR_BIT: "Q4_K",
}
"""Precision -> ggml type."""


@dataclass(frozen=True)
class TypeRecipe:
    """llama.cpp's own mixture of that name."""

    name: str
    """``F16``, ``Q8_0``, ``Q4_K_M``, ..."""
    imatrix: Path | None = None


@dataclass(frozen=True)
class PlanRecipe:
    """Every planned weight at its precision; embedding and output head raw."""

    plan: QuantizationPlan
    types: Mapping[Precision, str] = field(default_factory=lambda: DEFAULT_TYPES)
    imatrix: Path | None = None


Recipe = TypeRecipe | PlanRecipe


def make_recipe(
    type_name: str | None,
    plan: QuantizationPlan | None,
    types: Mapping[Precision, str] | None = None,
    imatrix: Path | None = None,
) -> Recipe:
    """The recipe that the arguments of an export describe.

    Raises:
        InputError: neither or both of type and plan, types without a plan, or a type that
            llama.cpp does not have.
        BackendUnavailable: the ``gguf`` extra, which knows the types, is absent.
    """
    if (type_name is None) == (plan is None):
        raise InputError("give either a type such as Q4_K_M or a plan, not both and not neither")
    if plan is not None:
        chosen = {**DEFAULT_TYPES, **(types or {})}
        _check(chosen.values(), "GGMLQuantizationType", "", "F16, Q8_0, Q6_K, Q4_K")
        return PlanRecipe(plan, chosen, imatrix)
    if types:
        raise InputError("types per precision need a plan; a single type is named by --type")
    name = str(type_name).upper()
    if name != "F32":
        _check([name], "LlamaFileType", "MOSTLY_", "F16, BF16, Q8_0, Q6_K, Q4_K_M")
    return TypeRecipe(name, imatrix)


def _check(names: Iterable[str], table: str, prefix: str, examples: str) -> None:
    try:
        import gguf
    except ImportError as error:
        raise BackendUnavailable("exporting GGUF needs: pip install 'ewq[gguf]'") from error
    for name in names:
        if f"{prefix}{name}" not in getattr(gguf, table).__members__:
            raise InputError(f"llama.cpp has no type {name!r}; there are for example {examples}")


def parse_types(text: str) -> dict[Precision, str]:
    """``raw=F16,8bit=Q8_0,4bit=Q4_K`` as a mapping; what is left out keeps its default.

    Raises:
        InputError: not of that form, or a precision that does not exist.
    """
    types: dict[Precision, str] = {}
    for part in filter(None, text.split(",")):
        precision, separator, name = part.partition("=")
        if not separator or not name or precision.strip() not in list(Precision):
            raise InputError(f"types {part!r}: write for example raw=F16,8bit=Q8_0,4bit=Q4_K")
        types[Precision(precision.strip())] = name.strip().upper()
    return types
