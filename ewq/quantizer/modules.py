"""The bitsandbytes module for a linear one, and each tensor on its way to it from the checkpoint.

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
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, int8_vectorwise_quant
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import (
    Bnb4bitDeserialize,
    Bnb4bitQuantize,
    Bnb8bitDeserialize,
)
from transformers.pytorch_utils import Conv1D

from ewq.checkpoint.loading import remembering
from ewq.errors import InputError
from ewq.instruments.memory import trim_heap
from ewq.quantizer.config import StorageOptions
from ewq.variants import Precision

MADV_DONTNEED = 4
EVERY_BYTES = 64 * 1024 * 1024
MOST_ROUNDS = 32
"""Memory is given back every so many source bytes, and at most so often a load: a round reads the
page tables of the whole process."""
QUANTIZED = (Linear4bit, Linear8bitLt)
CPU_KERNEL_ROWS = 32
"""bitsandbytes' packed kernel for processors wants output rows in multiples of this."""
PLAIN_SUBCLASSES = frozenset({"FalconLinear"})
"""Subclasses of ``Linear`` in transformers that compute the same function."""
Tensors = dict[str, Any]


def is_linear(module: nn.Module) -> bool:
    """Whether a quantized module can stand for this one; other subclasses of ``Linear`` cannot."""
    kind = type(module)
    return isinstance(module, Conv1D) or kind is nn.Linear or kind.__name__ in PLAIN_SUBCLASSES


def replacement(
    module: nn.Module,
    precision: Precision,
    options: StorageOptions,
    dtype: torch.dtype,
    stored: bool,
) -> nn.Module:
    """A quantized module for a linear one, on the meta device, waiting for its weight.

    4-bit products are computed in ``dtype``; ``stored``: the checkpoint holds quantized values.
    """
    is_four_bit = precision is Precision.FOUR_BIT
    new: Linear4bit | Linear8bitLt
    with torch.device("meta"):
        if is_four_bit:
            new = _four_bit(module, options, dtype)
        else:
            new = Linear8bitLt(
                *_features(module),
                module.bias is not None,
                has_fp16_weights=False,
                threshold=options.int8_threshold,
            )
    if stored:
        new.weight.data = new.weight.data.to(torch.uint8 if is_four_bit else torch.int8)
    # What transformers' own operations read to transpose Conv1D weights.
    new.source_cls = type(module)  # type: ignore[assignment]
    return new.requires_grad_(False).train(module.training)


def _features(module: Any) -> tuple[int, int]:
    """``(in, out)`` of a linear module; ``Conv1D`` stores its weight as ``[in, out]``."""
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return int(rows), int(columns)
    return int(module.in_features), int(module.out_features)


def _four_bit(module: nn.Module, options: StorageOptions, dtype: torch.dtype) -> Linear4bit:
    new = Linear4bit(  # type: ignore[no-untyped-call]
        *_features(module),
        module.bias is not None,
        compute_dtype=dtype,
        compress_statistics=options.double_quant,
        quant_type=options.quant_type,
    )
    weight: Any = new.weight
    weight.blocksize = options.block_size
    # The kernel rounds activations and scales to bfloat16, and fails on shapes it does not divide.
    fits = new.out_features % CPU_KERNEL_ROWS == 0 and new.in_features % options.block_size == 0
    new.support_avx512bf16_for_cpu &= fits and dtype == torch.bfloat16
    return new


def state_to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as saved: 8-bit weights as a column, which nobody takes for plain ones."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            _undo_repacking(module)
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(module, Linear8bitLt) and weight is not None:
            state[f"{name}.weight"] = weight.reshape(-1, 1)
    return state


def _undo_repacking(module: Linear4bit) -> None:
    """Put a weight back in order that bitsandbytes repacked in place, scales included."""
    parameter: Any = module.weight
    state: Any = getattr(parameter, "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return
    # float32 and row order before anything is derived from the scales.
    absmax = state.absmax.T.contiguous().to(torch.float32)
    weight, state = _convert_weight_packed_for_cpu_inverse(parameter.data, state)
    if not state.nested:
        state.absmax = absmax.reshape(-1)
    parameter.data, parameter.quant_state, module.quant_state = weight, state, state


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
        largest = f"{name} holds {float(weight.abs().max()):,.0f}"
        raise InputError(f"{largest}, beyond 65,504 in 8 bits: plan it raw or in 4 bits")
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
