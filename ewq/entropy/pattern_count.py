"""Counting 16-bit patterns on a device: a CUDA kernel of our own, or what torch has.

A table of 65,536 counters does not fit a processor's shared memory, and counting
in global memory makes every weight an atomic operation there. So each thread
block keeps only the counters of one slice of the patterns (half of them on a
data-centre card) in shared memory, skips the other patterns, and adds its
counters to the global table once, at its end. Every weight is read once per slice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ewq.entropy.kernels import PATTERNS

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Count = Callable[["torch.Tensor"], "torch.Tensor"]
PATTERN_BITS = 16
COUNTER_BYTES = 4
OLD_SHARED_BYTES = 48 * 1024
"""What every card has, where torch does not tell how much a kernel may ask for."""
VECTOR = 8
"""Patterns per 16-byte load."""
THREADS = 1024
MOST_VALUES = 2**31 - 1
"""Of one launch: a block's 32-bit counters cannot overflow, and indices fit an int."""
SOURCE = r"""
__device__ void count_one(
    unsigned int* bins, unsigned int pattern, unsigned int slice, int slice_bits)
{
    if ((pattern >> slice_bits) == slice)
        atomicAdd(&bins[pattern & ((1u << slice_bits) - 1u)], 1u);
}

__device__ void count_two(
    unsigned int* bins, unsigned int pair, unsigned int slice, int slice_bits)
{
    count_one(bins, pair & 0xFFFFu, slice, slice_bits);
    count_one(bins, pair >> 16, slice, slice_bits);
}

extern "C" __global__ void count_patterns(
    const uint4* data, unsigned long long* counts, int vectors, int slice_bits)
{
    extern __shared__ unsigned int bins[];
    const unsigned int slice = blockIdx.y;
    const int size = 1 << slice_bits;
    for (int bin = threadIdx.x; bin < size; bin += blockDim.x)
        bins[bin] = 0u;
    __syncthreads();
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < vectors;
         at += stride) {
        const uint4 eight = data[at];
        count_two(bins, eight.x, slice, slice_bits);
        count_two(bins, eight.y, slice, slice_bits);
        count_two(bins, eight.z, slice, slice_bits);
        count_two(bins, eight.w, slice, slice_bits);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < size; bin += blockDim.x)
        if (bins[bin])
            atomicAdd(&counts[((unsigned int)slice << slice_bits) + bin],
                      (unsigned long long)bins[bin]);
}
"""


def count_patterns(bits: torch.Tensor) -> torch.Tensor:
    """How often each 16-bit pattern occurs in ``bits``, ``[65536]`` int64 on its device.

    Args:
        bits: int16, flat, on any device.
    """
    return _counter(str(bits.device))(bits)


def torch_count(bits: torch.Tensor) -> torch.Tensor:
    """The same by torch's own operation, which works everywhere."""
    import torch

    return torch.bincount(bits.int() & (PATTERNS - 1), minlength=PATTERNS)


def slice_bits_for(shared_bytes: int) -> int:
    """Bits of the largest slice of the patterns whose counters fit ``shared_bytes``."""
    return min(PATTERN_BITS, (shared_bytes // COUNTER_BYTES).bit_length() - 1)


@cache
def _counter(device: str) -> Count:
    """The kernel where it compiles and counts right, else torch's operation, with a warning."""
    if not device.startswith("cuda"):
        return torch_count
    try:
        counter = _compiled(device)
        _check(counter, device)
    except (RuntimeError, OSError, AttributeError, ImportError) as error:
        reason = str(error).split("\n")[0]
        logger.warning("the counting kernel does not run on %s (%s); using torch", device, reason)
        return torch_count
    return counter


def _compiled(device: str) -> Count:
    import torch

    properties = torch.cuda.get_device_properties(torch.device(device))
    most: int = getattr(properties, "shared_memory_per_block_optin", OLD_SHARED_BYTES)
    slice_bits = slice_bits_for(most)
    shared_bytes = COUNTER_BYTES << slice_bits
    grid = (properties.multi_processor_count, PATTERNS >> slice_bits, 1)
    with torch.cuda.device(device):
        kernel = torch.cuda._compile_kernel(SOURCE, "count_patterns")
        kernel.set_shared_memory_config(shared_bytes)

    def count(bits: torch.Tensor) -> torch.Tensor:
        flat = bits.reshape(-1)
        if flat.numel() > MOST_VALUES:
            half = flat.numel() // 2
            return count(flat[:half]) + count(flat[half:])
        if flat.data_ptr() % (2 * VECTOR):
            flat = flat.clone()
        vectors = flat.numel() // VECTOR
        counts = torch_count(flat[vectors * VECTOR :])
        if vectors:
            with torch.cuda.device(flat.device):
                kernel(grid, (THREADS, 1, 1), [flat, counts, vectors, slice_bits], shared_bytes)
        return counts

    return count


def _check(counter: Count, device: str) -> None:
    """Count every pattern at least once, and one of them often, in both ways.

    Raises:
        RuntimeError: they differ.
    """
    import torch

    every = torch.arange(PATTERNS, device=device).to(torch.int16)
    bits = torch.cat([every, every[:12345], every.new_full((70_001,), -1)])
    if not torch.equal(counter(bits), torch_count(bits)):
        raise RuntimeError("it counts otherwise than torch")
