"""The quantizer that transformers calls while it loads a model."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from ewq.checkpoint.opening import Checkpoint
from ewq.instruments.memory import weights_bytes
from ewq.planning.analysis import analyze
from ewq.planning.plan import QuantizationPlan, check_plan
from ewq.precision import Precision
from ewq.quantizer.checks import check_stored, opened, quantizable
from ewq.quantizer.config import METHOD, EwqConfig
from ewq.quantizer.dequantize import dequantize_model
from ewq.quantizer.modules import replacement
from ewq.quantizer.ops import EwqDeserialize, EwqQuantize, is_quantized_weight, module_of
from ewq.quantizer.pages import Housekeeper
from ewq.quantizer.stored import state_to_save

LOADED = {Precision.EIGHT_BIT: "is_loaded_in_8bit", Precision.FOUR_BIT: "is_loaded_in_4bit"}
"""Attributes by which peft and accelerate know bitsandbytes models."""


@register_quantizer(METHOD)
class EwqHfQuantizer(Bnb4BitHfQuantizer):
    """Swaps linear modules on the meta device and quantizes each weight as it arrives.

    Devices, memory limits and offloading follow transformers' bitsandbytes
    quantizers, from which it inherits them.
    """

    quantization_config: EwqConfig  # type: ignore[assignment]
    serialized_names = {  # noqa: RUF012 - transformers declares it this way
        "weight": list(
            dict.fromkeys(
                Bnb4BitHfQuantizer.serialized_names["weight"]
                + Bnb8BitHfQuantizer.serialized_names["weight"]
            )
        )
    }

    @property
    def quantized_element_size(self) -> None:  # type: ignore[override]
        """Differs from weight to weight: see :meth:`param_element_size`."""
        return None

    def param_element_size(self, model: nn.Module, param_name: str, param: torch.Tensor) -> float:
        """Bytes per value of a parameter, for placing modules on devices."""
        if not self.param_needs_quantization(model, param_name):
            return float(param.element_size())
        of = module_of(model, param_name)
        if not hasattr(of, "quant_type") and not hasattr(of.weight, "quant_type"):
            return 1.0 + 4.0 / param.shape[-1]
        return 0.5 + 4.0 / self.quantization_config.options.block_size

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: object) -> bool:
        """Whether a parameter is the weight of a module that was swapped."""
        return is_quantized_weight(model, param_name)

    def _process_model_before_weight_loading(
        self,
        model: Any,  # noqa: ANN401 - a PreTrainedModel
        device_map: Any = None,  # noqa: ANN401 - str or dict
        dtype: torch.dtype | None = None,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: object,
    ) -> None:
        checkpoint = opened(checkpoint_files, str(model.config.name_or_path))
        plan = self._settled_plan(checkpoint)
        modules = quantizable(plan, model)
        if self.pre_quantized:
            check_stored(checkpoint.tensors, modules)
        modules = self._placed(modules, device_map)
        options = self.quantization_config.options
        named = options.compute_dtype
        compute = (dtype or torch.float32) if named == "auto" else getattr(torch, named)
        for name, precision in modules.items():
            old = model.get_submodule(name)
            new = replacement(old, precision, options, compute, self.pre_quantized)
            model.set_submodule(name, new)
        self.precisions = frozenset(modules.values())
        self.housekeeper = Housekeeper(checkpoint_files or ())

    def _settled_plan(self, checkpoint: Checkpoint) -> QuantizationPlan:
        """The config's plan, or the one its rule leads to; checked against the checkpoint."""
        config = self.quantization_config
        if config.plan is None:
            chosen = {**config.rule, **config.drafting, "target": config.options.target}
            given = {name: value for name, value in chosen.items() if value is not None}
            # A new config: the user's own may serve for another model.
            plan = analyze(checkpoint).plan(**given)  # type: ignore[arg-type]
            self.quantization_config = config.with_plan(plan)
        elif not self.pre_quantized:
            check_plan(config.plan, checkpoint)
        settled = self.quantization_config.plan
        assert settled is not None  # just made where it was missing
        return settled

    def _placed(
        self,
        modules: dict[str, Precision],
        device_map: Any,  # noqa: ANN401 - str or dict
    ) -> dict[str, Precision]:
        """Without the modules that offloading keeps unquantized, as bitsandbytes' methods do."""
        offload = self.quantization_config.llm_int8_enable_fp32_cpu_offload
        if not offload or not isinstance(device_map, dict):
            return modules
        kept = [name for name, device in device_map.items() if device in ("cpu", "disk")]
        outside = {n for n in modules for path in kept if f"{n}.".startswith(f"{path}.")}
        return {name: of for name, of in modules.items() if name not in outside}

    def _process_model_after_weight_loading(
        self,
        model: Any,  # noqa: ANN401 - a PreTrainedModel
        **kwargs: object,
    ) -> Any:  # noqa: ANN401 - the same model
        self.housekeeper.tidy()
        for precision in self.precisions & LOADED.keys():
            setattr(model, LOADED[precision], True)
        model.get_memory_footprint = MethodType(_footprint, model)
        # Saving stores the parts as they are: there is nothing of ours to revert.
        model._weight_conversions = [
            of for of in (model._weight_conversions or []) if not _is_ours(of)
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

    def _dequantize(
        self,
        model: Any,  # noqa: ANN401 - a PreTrainedModel
        dtype: torch.dtype | None = None,
    ) -> Any:  # noqa: ANN401 - the same model
        dequantize_model(model, dtype or model.dtype)
        return model

    def remove_quantization_config(self, model: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
        """Forget everything that marks a model as quantized."""
        super().remove_quantization_config(model)  # type: ignore[no-untyped-call]
        for name in ("get_memory_footprint", *LOADED.values()):
            model.__dict__.pop(name, None)


def _footprint(model: nn.Module, return_buffers: bool = True) -> int:
    """In place of ``PreTrainedModel.get_memory_footprint``, which misses scales and tables."""
    return weights_bytes(model)


def _is_ours(conversion: object) -> bool:
    operations = getattr(conversion, "operations", ())
    return any(isinstance(of, EwqDeserialize) for of in operations)
