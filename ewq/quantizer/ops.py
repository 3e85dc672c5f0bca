"""What happens to each tensor as it streams from the checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import (
    Bnb4bitDeserialize,
    Bnb4bitQuantize,
    Bnb8bitDeserialize,
    Bnb8bitQuantize,
)

from ewq.conversion_errors import noted
from ewq.quantizer.stored import in_shape

QUANTIZED = (Linear4bit, Linear8bitLt)
QUANTIZE: dict[type[nn.Module], Any] = {Linear4bit: Bnb4bitQuantize, Linear8bitLt: Bnb8bitQuantize}
DESERIALIZE: dict[type[nn.Module], Any] = {
    Linear4bit: Bnb4bitDeserialize,
    Linear8bitLt: Bnb8bitDeserialize,
}
Tensors = dict[str, Any]


def module_of(model: nn.Module, parameter: str) -> nn.Module:
    """The module that holds a parameter."""
    return model.get_submodule(parameter.rpartition(".")[0])


def is_quantized_weight(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter is the weight of a quantized module."""
    path, _, name = parameter.rpartition(".")
    return name == "weight" and isinstance(model.get_submodule(path), QUANTIZED)


class EwqQuantize(ConversionOps):
    """Quantizes the weights of one converter as their modules' classes say."""

    def __init__(self, hf_quantizer: Any) -> None:  # noqa: ANN401 - the quantizer makes these
        self.hf_quantizer = hf_quantizer

    @noted
    def convert(  # type: ignore[override]
        self, input_dict: Tensors, model: nn.Module | None = None, **kwargs: object
    ) -> Tensors:
        """Quantized parameters for quantized modules, everything else as it came."""
        assert model is not None  # transformers always hands it over
        result: Tensors = {}
        for name, value in input_dict.items():
            if not is_quantized_weight(model, name):
                result[name] = value
                continue
            operation = QUANTIZE[type(module_of(model, name))](self.hf_quantizer)
            result.update(operation.convert({name: value}, model=model, **kwargs))
            self.hf_quantizer.housekeeper.used(_first(value).nbytes)
        return result


class EwqDeserialize(ConversionOps):
    """Joins the stored parts of one weight: values, scales, tables."""

    def __init__(self, hf_quantizer: object) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(  # type: ignore[override]
        self,
        input_dict: Tensors,
        model: nn.Module | None = None,
        full_layer_name: str | None = None,
        **kwargs: object,
    ) -> Tensors:
        """A quantized parameter, or the raw weight in the dtype the model was asked for."""
        assert model is not None  # transformers always hands both over
        assert full_layer_name is not None
        module = module_of(model, full_layer_name)
        if len(input_dict) > 1 and isinstance(module, QUANTIZED):
            operation = DESERIALIZE[type(module)](self.hf_quantizer)
            if isinstance(module, Linear8bitLt):
                weight = _first(input_dict["weight"])
                input_dict = {**input_dict, "weight": in_shape(module, weight)}
            found: Tensors = operation.convert(
                input_dict, model=model, full_layer_name=full_layer_name, **kwargs
            )
            return found
        # Stored parts keep their dtypes, so the loader casts nothing: raw weights are cast here.
        dtype = getattr(module, full_layer_name.rpartition(".")[2]).dtype
        return {name: _cast(value, dtype) for name, value in input_dict.items()}


def _cast(value: list[torch.Tensor] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = _first(value)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _first(value: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    return value[0] if isinstance(value, list) else value
