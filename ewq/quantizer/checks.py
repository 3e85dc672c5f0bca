"""What is wrong with a plan or a stored folder, said before any weight is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.checkpoint.tensor_info import TensorInfo
from ewq.errors import CheckpointError, PlanError
from ewq.planning.plan import NAMED, QuantizationPlan
from ewq.precision import Precision
from ewq.quantizer.modules import is_linear

logger = logging.getLogger(__name__)

COMPANIONS = {Precision.FOUR_BIT: ".weight.absmax", Precision.EIGHT_BIT: ".SCB"}
"""What save_pretrained stores beside each quantized weight."""


def opened(files: Sequence[str] | None, model: str) -> Checkpoint:
    """The checkpoint that transformers is about to load.

    Raises:
        CheckpointError: a state dict was handed over instead, or the folder is incomplete.
    """
    if not files:
        raise CheckpointError(
            f"{model} comes as a state dict; ewq needs the folder to know it by its fingerprint"
        )
    return open_checkpoint(Path(files[0]).parent)


def quantizable(plan: QuantizationPlan, model: nn.Module) -> dict[str, Precision]:
    """Module names that a plan quantizes, with their precisions.

    Weights that bitsandbytes cannot quantize (experts stacked into one 3-D
    parameter, subclasses of ``Linear``) stay raw, as in its own methods, and a
    warning says how many.

    Raises:
        PlanError: the plan names a weight that the model does not have.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in plan.weights if name not in parameters]
    if unknown:
        raise PlanError(
            f"the plan for {plan.model} names {len(unknown)} weights that "
            f"{type(model).__name__} lacks: {', '.join(unknown[:NAMED])}"
        )
    wanted = {name: of for name, of in plan.weights.items() if of is not Precision.RAW}
    able = {name: of for name, of in wanted.items() if _replaceable(model, name)}
    kept = [name for name in wanted if name not in able]
    if kept:
        logger.warning(
            "%d of %d weights to quantize stay raw (%d bytes): bitsandbytes quantizes linear "
            "modules only, not %s",
            len(kept),
            len(wanted),
            sum(parameters[name].numel() * parameters[name].element_size() for name in kept),
            ", ".join(kept[:NAMED]),
        )
    return {name.removesuffix(".weight"): of for name, of in able.items()}


def _replaceable(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and is_linear(model.get_submodule(path))


def check_stored(tensors: Mapping[str, TensorInfo], modules: Mapping[str, Precision]) -> None:
    """Refuse a quantized folder that lacks scales its plan calls for.

    Raises:
        CheckpointError: naming the precision and how many are there and should be.
    """
    for precision, suffix in COMPANIONS.items():
        wanted = sum(of is precision for of in modules.values())
        found = [name for name in tensors if name.endswith(suffix)]
        if len(found) != wanted:
            where = next(iter(tensors.values())).file.parent if tensors else "the folder"
            raise CheckpointError(
                f"{where} has scales for {len(found)} {precision.value} weights, its plan for "
                f"{wanted}; it is incomplete or its config.json is another model's: "
                "run `ewq quantize` again"
            )
