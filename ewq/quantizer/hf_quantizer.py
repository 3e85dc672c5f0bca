"""The quantizer that transformers calls while it loads a model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import nn
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from ewq.checkpoint.opening import open_checkpoint
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import CheckpointError, InputError, PlanError
from ewq.planning.plan import (
    BITSANDBYTES,
    NAMED,
    QuantizationPlan,
    check_budget,
    check_plan,
    require_target,
)
from ewq.quantizer.config import METHOD, EwqConfig
from ewq.quantizer.modules import (
    EwqDeserialize,
    EwqQuantize,
    MappedPages,
    is_linear,
    is_quantized_weight,
    module_of,
    replacement,
    state_to_save,
)
from ewq.variants import Precision

logger = logging.getLogger(__name__)

LOADED = {Precision.EIGHT_BIT: "is_loaded_in_8bit", Precision.FOUR_BIT: "is_loaded_in_4bit"}
"""Attributes by which peft and accelerate know bitsandbytes models."""
COMPANIONS = {Precision.FOUR_BIT: ".weight.absmax", Precision.EIGHT_BIT: ".SCB"}
"""What save_pretrained stores beside each quantized weight."""
PARTS = dict.fromkeys(
    Bnb4BitHfQuantizer.serialized_names["weight"] + Bnb8BitHfQuantizer.serialized_names["weight"]
)
"""What a weight may be stored as, by transformers' own quantizers."""


@register_quantizer(METHOD)
class EwqHfQuantizer(Bnb4BitHfQuantizer):
    """Swaps linear modules on the meta device and quantizes each weight as it arrives."""

    quantization_config: EwqConfig  # type: ignore[assignment]
    serialized_names = {"weight": list(PARTS)}  # noqa: RUF012 - as transformers'

    def param_element_size(self, model: nn.Module, param_name: str, param: torch.Tensor) -> float:
        """Bytes per value of a parameter, for placing modules on devices."""
        if not is_quantized_weight(model, param_name):
            return float(param.element_size())
        if isinstance(module_of(model, param_name), Linear8bitLt):
            return 1.0 + 4.0 / param.shape[-1]
        return 0.5 + 4.0 / self.quantization_config.options.block_size

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: object) -> bool:
        """Whether a parameter is the weight of a module that was swapped."""
        return is_quantized_weight(model, param_name)

    def _process_model_before_weight_loading(
        self,
        model: Any,
        device_map: Any = None,
        dtype: torch.dtype | None = None,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: object,
    ) -> None:
        if not checkpoint_files:
            raise CheckpointError("EWQ quantizes models from folders, not from state dicts")
        checkpoint = open_checkpoint(Path(checkpoint_files[0]).parent)
        plan, options = self.quantization_config.plan, self.quantization_config.options
        if not self.pre_quantized:
            require_target(plan, BITSANDBYTES)
            check_plan(plan, checkpoint)
            check_budget(plan, checkpoint, options.target)
        modules = _quantizable(plan, model)
        if self.pre_quantized:
            _check_stored(checkpoint.tensors, modules)
        offloaded = self._offloaded(device_map)
        modules = {n: of for n, of in modules.items() if not f"{n}.".startswith(offloaded)}
        named = options.compute_dtype
        compute = (dtype or torch.float32) if named == "auto" else getattr(torch, named)
        for name, precision in modules.items():
            old = model.get_submodule(name)
            new = replacement(old, precision, options, compute, self.pre_quantized)
            model.set_submodule(name, new)
        self.precisions = frozenset(modules.values())
        self.pages = MappedPages(checkpoint_files)

    def _offloaded(self, device_map: Any) -> tuple[str, ...]:
        """How names of modules begin that offloading keeps unquantized, as in bitsandbytes'."""
        offload = self.quantization_config.llm_int8_enable_fp32_cpu_offload
        if not offload or not isinstance(device_map, dict):
            return ()
        return tuple(f"{name}." for name, at in device_map.items() if at in ("cpu", "disk"))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: object) -> Any:
        self.pages.release()
        for precision in self.precisions:
            setattr(model, LOADED[precision], True)
        # Saving stores the parts as they are: there is nothing of ours to revert.
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions or []
            if EwqDeserialize not in map(type, getattr(conversion, "operations", ()))
        ]
        return model

    def get_quantize_ops(self) -> EwqQuantize:
        """The operation for each weight of an unquantized checkpoint."""
        return EwqQuantize(self)

    def get_load_operations(self) -> dict[str, type[EwqDeserialize]]:
        """The operation for each weight of a quantized checkpoint."""
        return {"deserialize": EwqDeserialize}

    def get_state_dict_and_metadata(
        self, model: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What transformers writes when it saves the model."""
        return state_to_save(model), {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        raise InputError("EWQ's models are not dequantized in place; load the original model")


def _quantizable(plan: QuantizationPlan, model: nn.Module) -> dict[str, Precision]:
    """Names of the modules that a plan quantizes; a warning says what bitsandbytes cannot."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in plan.weights if name not in parameters]
    if unknown:
        lacking = f"{type(model).__name__} lacks {len(unknown)} weights of {plan.model}'s plan"
        raise PlanError(f"{lacking}: {', '.join(unknown[:NAMED])}")
    wanted = {name: of for name, of in plan.weights.items() if of is not Precision.RAW}
    kept = [
        name
        for name in wanted
        if not name.endswith(".weight") or not is_linear(module_of(model, name))
    ]
    if kept:
        logger.warning(
            "%d of %d weights to quantize stay raw (%d bytes): bitsandbytes quantizes linear "
            "modules only, not %s",
            len(kept),
            len(wanted),
            sum(parameters[name].numel() * parameters[name].element_size() for name in kept),
            ", ".join(kept[:NAMED]),
        )
    return {name.removesuffix(".weight"): of for name, of in wanted.items() if name not in kept}


def _check_stored(tensors: Mapping[str, TensorInfo], modules: Mapping[str, Precision]) -> None:
    for precision, suffix in COMPANIONS.items():
        wanted = sum(of is precision for of in modules.values())
        found = [name for name in tensors if name.endswith(suffix)]
        if len(found) != wanted:
            where = next(iter(tensors.values())).file.parent if tensors else "the folder"
            held = f"{where} has scales for {len(found)} {precision.value} weights, not {wanted}"
            raise CheckpointError(f"{held} as its plan says: run `ewq quantize` again")
