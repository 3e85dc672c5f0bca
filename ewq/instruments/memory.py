"""Memory of this process, the peak of any memory gauge, and the bytes of a model's weights."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROC = Path("/proc/self")


class SampledPeak:
    """Peak by reading every hundredth of a second in a thread; spikes between two are missed.

    The thread costs time, so it must never run beside a round whose time counts.
    """

    def __init__(self, read: Callable[[], int]) -> None:
        self.peak_bytes = 0
        self._read = read
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> SampledPeak:
        self.peak_bytes = self._read()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._read())

    def _sample(self) -> None:
        while not self._stopped.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, self._read())


class ProcessMemory:
    """Resident set size, with the kernel's own peak where it can be reset (Linux)."""

    name = "process-rss"

    def used_bytes(self) -> int:
        """Resident bytes now, memory-mapped weights that were touched included."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    def watch(self) -> KernelPeak | SampledPeak:
        """The kernel's high-water mark; by sampling where it cannot be reset."""
        try:
            with KernelPeak():
                return KernelPeak()
        except OSError:
            return SampledPeak(self.used_bytes)

    def shared_with(self) -> int:
        """Always 0: the readings are this process's own."""
        return 0


class KernelPeak:
    """Peak resident set size as the kernel keeps it: exact, at no cost."""

    peak_bytes = 0

    def __enter__(self) -> KernelPeak:
        (PROC / "clear_refs").write_text("5")  # resets the peak, as proc(5) says
        return self

    def __exit__(self, *raised: object) -> None:
        self.peak_bytes = high_water_mark_bytes()


def high_water_mark_bytes() -> int:
    """``VmHWM`` of ``/proc/self/status`` in bytes; an OSError without such a file or line."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC / 'status'} has no VmHWM line")


def collect_garbage() -> None:
    """Collect cycles and hand cached GPU memory back to the driver."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def release_free_memory() -> None:
    """Give freed memory back to the system, so that a baseline holds live objects only."""
    collect_garbage()
    trim_heap()


def trim_heap() -> None:
    """Give what the C library holds free back to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def weights_bytes(model: torch.nn.Module, checkpoint_dtype: torch.dtype | None = None) -> int:
    """Bytes of every distinct stored tensor of a loaded model; tied tensors count once.

    Counted are parameters, persistent buffers and all that bitsandbytes keeps beside its packed
    weights. Raw parameters count with the checkpoint's width, even if computed in a wider type.
    """
    raw = {id(p) for p in model.parameters() if p.is_floating_point()}
    sizes = {}
    for tensor in _stored_tensors(model):
        width = tensor.element_size()
        if checkpoint_dtype and id(tensor) in raw:
            width = min(width, checkpoint_dtype.itemsize)
        # Tensors on the meta device have no memory to share.
        place = (tensor.device, tensor.data_ptr() or id(tensor), tensor.numel())
        sizes[place] = tensor.numel() * width
    return sum(sizes.values())


def parameter_count(model: torch.nn.Module) -> int:
    """Number of weights as the architecture defines them, whatever they are packed into."""
    return sum(
        math.prod((getattr(parameter, "quant_state", None) or parameter).shape)
        for parameter in model.parameters()
    )


def _stored_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield from _plain_tensors(parameter)
        yield from _state_tensors(getattr(parameter, "quant_state", None))
        yield from _tensors(parameter, "SCB")
    for module in model.modules():
        # Not by its state_dict, for which bitsandbytes unpacks what it packed for the processor.
        persistent = module._buffers.keys() - module._non_persistent_buffers_set
        yield from (
            of for name, of in module._buffers.items() if name in persistent and of is not None
        )
        # After its first forward pass Linear8bitLt keeps the scales here.
        yield from _tensors(getattr(module, "state", None), "SCB")


def _plain_tensors(tensor: Any) -> Iterator[torch.Tensor]:
    """Those that a tensor subclass (torchao's) is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _state_tensors(state: Any) -> Iterator[torch.Tensor]:
    if state is not None:
        yield from _tensors(state, "absmax", "code", "offset")
        yield from _state_tensors(getattr(state, "state2", None))


def _tensors(owner: object, *names: str) -> Iterator[torch.Tensor]:
    import torch

    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, torch.Tensor):
            yield value
