"""Each tensor on its way from the checkpoint to its module, and the memory it gives back.

On Linux mapped pages and freed working copies are handed back as loading goes on, so that the peak
follows the finished model and not the checkpoint.
"""

import ctypes
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn.modules import Int8Params, Linear8bitLt
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import (
    Bnb4bitDeserialize,
    Bnb4bitQuantize,
    Bnb8bitDeserialize,
)
from transformers.pytorch_utils import Conv1D

from ewq.conversion_errors import remembering
from ewq.errors import InputError
from ewq.instruments.memory import trim_heap
from ewq.quantizer.modules import QUANTIZED

MADV_DONTNEED = 4
EVERY_BYTES = 64 * 1024 * 1024
MOST_ROUNDS = 32
"""Memory is given back every so many source bytes, and at most so often a load: a round reads the
page tables of the whole process."""
Tensors = dict[str, Any]


def module_of(model: nn.Module, parameter: str) -> nn.Module:
    """The module that holds a parameter."""
    return model.get_submodule(parameter.rpartition(".")[0])


def is_quantized_weight(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter is the weight of a quantized module."""
    return parameter.endswith(".weight") and isinstance(module_of(model, parameter), QUANTIZED)


class EwqQuantize(ConversionOps):
    """Quantizes the weights of one converter as their modules' classes say."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer

    @remembering()
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
            module = module_of(model, name)
            if isinstance(module, Linear8bitLt):
                result[name] = int8_parameter(module, _first(value), name)
            else:
                operation: Any = Bnb4bitQuantize(self.hf_quantizer)  # type: ignore[no-untyped-call]
                result.update(operation.convert({name: value}, model=model, **kwargs))
            self.hf_quantizer.pages.used(_first(value).nbytes)
        return result


def int8_parameter(module: Any, weight: torch.Tensor, name: str) -> Int8Params:
    """A weight quantized where it lies; transformers' own operation takes each through the CPU.

    An InputError of a value beyond float16, through which bitsandbytes takes it.
    """
    laid_out = weight.T if issubclass(module.source_cls, Conv1D) else weight
    values, scales, _ = int8_vectorwise_quant(laid_out.contiguous().to(torch.float16))
    if not scales.isfinite().all():
        raise InputError(
            f"{name} holds {float(weight.abs().max()):,.0f}, which 8 bits cannot (at most 65,504); "
            "plan it raw or in 4 bits"
        )
    return Int8Params(values, requires_grad=False, CB=values, SCB=scales)


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
            kind: Any = Bnb4bitDeserialize
            if isinstance(module, Linear8bitLt):
                kind = Bnb8bitDeserialize
                weight = _first(input_dict["weight"])
                shape = (module.out_features, module.in_features)
                input_dict = {**input_dict, "weight": weight.reshape(shape)}
            found: Tensors = kind(self.hf_quantizer).convert(
                input_dict, model=model, full_layer_name=full_layer_name, **kwargs
            )
            return found
        # Stored parts keep their dtypes, so the loader casts nothing: raw weights are cast here.
        dtype = getattr(module, full_layer_name.rpartition(".")[2]).dtype
        tensors = {name: _first(value) for name, value in input_dict.items()}
        return {n: of.to(dtype) if of.is_floating_point() else of for n, of in tensors.items()}


def _first(value: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    return value[0] if isinstance(value, list) else value


class MappedPages:
    """The checkpoint's files as mapped here: counts what was read and drops it now and then."""

    def __init__(self, files: Collection[str]) -> None:
        self._files = {str(Path(file).resolve()) for file in files}
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._since_bytes = 0
        total = sum(Path(file).stat().st_size for file in self._files)
        self._every_bytes = max(EVERY_BYTES, total // MOST_ROUNDS)

    def used(self, nbytes: int) -> None:
        """``nbytes`` more of the checkpoint were quantized and are not needed again."""
        self._since_bytes += nbytes
        if self._since_bytes >= self._every_bytes:
            self.release()

    def release(self) -> None:
        """Drop clean pages of the checkpoint, which come back from the page cache if needed."""
        self._since_bytes = 0
        if self._libc is None:
            return
        for mapping in psutil.Process().memory_maps(grouped=False):
            # Dropping pages that were written to would lose the change.
            if mapping.path in self._files and not mapping.private_dirty:
                start, end = (int(address, 16) for address in mapping.addr.split("-"))
                length = ctypes.c_size_t(end - start)
                self._libc.madvise(ctypes.c_void_p(start), length, MADV_DONTNEED)
        trim_heap()
