"""What a GGUF is to be made into: one of llama.cpp's recipes, or a plan, tensor by tensor."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ewq.checkpoint.gguf_header import GgufHeader, ggml_types, gguf_library
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import InputError, PlanError
from ewq.gguf.convert import CONVERTED_TYPES
from ewq.gguf.imatrix import check_imatrix
from ewq.planning.plan import QuantizationPlan, require_target
from ewq.variants import Precision

DEFAULT_TYPES: Mapping[Precision, str] = {
    Precision.RAW: "F16",
    Precision.EIGHT_BIT: "Q8_0",
    Precision.FOUR_BIT: "Q4_K",
}
"""Precision -> ggml type."""
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
ROUTER = "ffn_gate_inp.weight"
"""End of the name of a matrix that llama.cpp's quantizer leaves as it is, whatever is asked."""
RENAMED = {"language_model.": "", "block_sparse_moe.experts.": "mlp.experts."}
"""Parts of names that gguf-py's table has otherwise: of vision models, and Granite's experts."""
STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "kv_b_proj": ("k_b_proj", "v_b_proj")}
"""Weights that transformers keeps as one and GGUF as two: experts, and latent attention's."""
NO_TYPE = "llama.cpp has no type {!r}; there are for example {}"
NAMED = 3


@dataclass(frozen=True)
class TypeRecipe:
    """llama.cpp's own mixture of that name."""

    name: str
    imatrix: Path | None = None


@dataclass(frozen=True)
class PlanRecipe:
    """Every planned weight at its precision; embedding and output head raw."""

    plan: QuantizationPlan
    types: Mapping[Precision, str] = field(default_factory=lambda: DEFAULT_TYPES)
    imatrix: Path | None = None


Recipe = TypeRecipe | PlanRecipe


def plain_type(recipe: Recipe) -> str | None:
    """The type of a recipe that needs no quantizer, only the converter."""
    if isinstance(recipe, TypeRecipe) and recipe.name in CONVERTED_TYPES:
        return recipe.name
    return None


def make_recipe(
    type_name: str | None = None,
    plan: QuantizationPlan | None = None,
    types: Mapping[Precision, str] | None = None,
    imatrix: Path | None = None,
) -> Recipe:
    """The recipe that the arguments of an export describe.

    An InputError of arguments that do not go together, an unknown type, or a missing or damaged
    importance matrix, a PlanError of types of bitsandbytes, a BackendUnavailable without ``gguf``.
    """
    if (type_name is None) == (plan is None):
        raise InputError("give exactly one of --type (such as Q4_K_M) and --plan")
    if plan is not None:
        require_target(plan, "gguf")
        chosen = {**DEFAULT_TYPES, **(types or {})}
        for name in (*chosen.values(), *plan.types.values()):
            if name not in ggml_types():
                raise InputError(NO_TYPE.format(name, "F16, Q8_0, Q6_K, Q4_K"))
        check_imatrix((plan.types or chosen).values(), imatrix)
        return PlanRecipe(plan, chosen, imatrix)
    if types:
        raise InputError("--types needs --plan; a single type is named by --type")
    name = str(type_name).upper()
    if name != "F32" and f"MOSTLY_{name}" not in gguf_library().LlamaFileType.__members__:
        raise InputError(NO_TYPE.format(name, "F16, BF16, Q8_0, Q6_K, Q4_K_M"))
    check_imatrix([name], imatrix)
    return TypeRecipe(name, imatrix)


def parse_types(text: str) -> dict[Precision, str]:
    """``raw=F16,8bit=Q8_0,4bit=Q4_K`` as a mapping; what is left out keeps its default."""
    types: dict[Precision, str] = {}
    for part in filter(None, text.split(",")):
        precision, separator, name = part.partition("=")
        if not separator or not name or precision.strip() not in list(Precision):
            raise InputError(f"invalid --types {part!r}: expected raw=F16,8bit=Q8_0,4bit=Q4_K")
        types[Precision(precision.strip())] = name.strip().upper()
    return types


def exact_types(source: GgufHeader, recipe: PlanRecipe) -> dict[str, str]:
    """A type for every matrix of the file that llama.cpp will quantize: planned, or raw.

    A PlanError where the plan names what the file does not have.
    """
    named = dict(recipe.plan.types)
    if named:
        present = {tensor.name for tensor in source.tensors}
        if missing := sorted(present ^ named.keys()):
            raise PlanError(
                f"the plan names {len(named)} tensors and {source.path.name} has {len(present)}; "
                f"{missing[0]} is in one of them only"
            )
    else:
        # Other matrices stay F32 in llama.cpp whatever is asked.
        raw = recipe.types[Precision.RAW]
        named = {EMBEDDING: raw, OUTPUT: raw}
        for weight, tensors in tensors_of_weights(source, recipe.plan.weights).items():
            named |= dict.fromkeys(tensors, recipe.types[recipe.plan.weights[weight]])
    return {
        tensor.name: named[tensor.name]
        for tensor in source.tensors
        if tensor.name in named and _is_quantizable(tensor)
    }


def tensors_of_weights(
    header: GgufHeader, weights: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """A file's tensors for every weight of a plan; a PlanError of a weight that has none."""
    names = TensorNames(header)
    found = {weight: names.of_weight(weight) for weight in weights}
    missing = [weight for weight, tensors in found.items() if not tensors]
    if missing:
        raise PlanError(
            f"{header.path.name} ({header.architecture}) has no tensor for {len(missing)} weights "
            f"of the plan: {', '.join(missing[:NAMED])}"
        )
    return found


def _is_quantizable(tensor: TensorInfo) -> bool:
    """Whether llama.cpp's quantizer touches it: no vector, also none stored as one row."""
    return math.prod(tensor.shape[:-1]) > 1 and not tensor.name.endswith(ROUTER)


class TensorNames:
    """From names of transformers to those of one GGUF file."""

    def __init__(self, header: GgufHeader) -> None:
        gguf = gguf_library()
        self._present = {tensor.name for tensor in header.tensors}
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if header.architecture not in kinds:
            raise PlanError(f"gguf-py knows no architecture {header.architecture!r}; update gguf")
        blocks = header.metadata.get(f"{header.architecture}.block_count")
        if not isinstance(blocks, int):
            raise PlanError(f"{header.path.name} does not say how many blocks it has")
        self._map = gguf.get_tensor_name_map(kinds[header.architecture], blocks)

    def of_weight(self, weight: str) -> tuple[str, ...]:
        """The file's tensors for one weight; empty where there is none."""
        if weight in self._present:
            return (weight,)
        for part, other in RENAMED.items():
            weight = weight.replace(part, other)
        return self._single(weight) or self._unstacked(weight)

    def _single(self, weight: str) -> tuple[str, ...]:
        name = self._map.get_name(weight, try_suffixes=(".weight", ".bias"))
        # Expert stacks carry no suffix in transformers and ".weight" in GGUF.
        return next(((n,) for n in (name, f"{name}.weight") if n in self._present), ())

    def _unstacked(self, weight: str) -> tuple[str, ...]:
        for stacked, parts in STACKED.items():
            if stacked in weight:
                names = [self._single(weight.replace(stacked, part)) for part in parts]
                return tuple(chain(*names)) if all(names) else ()
        return ()
