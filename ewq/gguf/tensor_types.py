"""Which ggml type each tensor of a file takes under a plan, and which llama.cpp leaves alone."""

from __future__ import annotations

import math

from ewq.checkpoint.gguf_header import GgufHeader, GgufTensor
from ewq.gguf.names import tensors_of_weights
from ewq.gguf.recipe import PlanRecipe
from ewq.precision import Precision

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
ROUTER = "ffn_gate_inp.weight"
"""End of the name of a matrix that llama.cpp's quantizer leaves as it is, whatever is asked."""


def exact_types(source: GgufHeader, recipe: PlanRecipe) -> dict[str, str]:
    """A type for every matrix of the file that llama.cpp will quantize: planned, or raw."""
    planned = _planned_types(source, recipe)
    raw = recipe.types[Precision.RAW]
    asked = {*planned, EMBEDDING, OUTPUT}
    return {
        tensor.name: planned.get(tensor.name, raw)
        for tensor in source.tensors
        # Other matrices stay F32 in llama.cpp whatever is asked.
        if _quantizable(tensor) and tensor.name in asked
    }


def _planned_types(source: GgufHeader, recipe: PlanRecipe) -> dict[str, str]:
    """Tensor name -> type, for every weight of the plan."""
    names = tensors_of_weights(source, recipe.plan.weights)
    return {
        tensor: recipe.types[precision]
        for weight, precision in recipe.plan.weights.items()
        for tensor in names[weight]
    }


def _quantizable(tensor: GgufTensor) -> bool:
    """Whether llama.cpp's quantizer touches it: no vector, also none stored as one row."""
    return math.prod(tensor.shape[1:]) > 1 and not tensor.name.endswith(ROUTER)


def left_alone(source: GgufHeader, recipe: PlanRecipe) -> tuple[str, ...]:
    """A note on weights that the plan quantizes and llama.cpp does not, if there are any."""
    planned, raw = _planned_types(source, recipe), recipe.types[Precision.RAW]
    left = [t for t in source.tensors if planned.get(t.name, raw) != raw and not _quantizable(t)]
    if not left:
        return ()
    kept = sum(tensor.nbytes for tensor in left)
    return (
        f"not quantized, against the plan: {len(left)} of its weights ({kept:,} bytes), the first "
        f"of them {left[0].name}, because llama.cpp quantizes neither routers nor single rows",
    )
