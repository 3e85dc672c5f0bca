"""The counting kernel on a processor: its own source, its threads carried out by C++ threads."""

import ctypes
import logging
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ewq.entropy import pattern_count
from ewq.entropy.kernels import PATTERNS
from ewq.entropy.pattern_count import SOURCE, count_patterns, slice_bits_for, torch_count

SHIM = r"""
#include <barrier>
#include <thread>
#include <vector>
struct uint4 { unsigned int x, y, z, w; };
struct dim { unsigned int x, y, z; };
static thread_local dim threadIdx, blockIdx;
static dim blockDim, gridDim;
static std::barrier<>* together;
unsigned int bins[65536];
#define __device__ static
#define __global__
#define __shared__
static void __syncthreads() { together->arrive_and_wait(); }
template <class T> void atomicAdd(T* at, T by) { __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
"""
LAUNCH = r"""
extern "C" void launch(const void* data, unsigned long long* counts, int vectors, int slice_bits,
                       int blocks, int threads)
{
    blockDim = {(unsigned)threads, 1, 1};
    gridDim = {(unsigned)blocks, 65536u >> slice_bits, 1};
    std::barrier<> barrier(threads);
    together = &barrier;
    for (unsigned y = 0; y < gridDim.y; y++)
        for (unsigned x = 0; x < gridDim.x; x++) {
            std::vector<std::thread> running;
            for (int t = 0; t < threads; t++)
                running.emplace_back([=] {
                    threadIdx = {(unsigned)t, 0, 0};
                    blockIdx = {x, y, 0};
                    count_patterns((const uint4*)data, counts, vectors, slice_bits);
                });
            for (auto& thread : running) thread.join();
        }
}
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernel with")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SHIM + SOURCE + LAUNCH)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "kernel.cpp"]
    subprocess.run([*command, "-o", "kernel.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernel.so")).launch


@pytest.fixture
def card(launch, monkeypatch):
    """A card of three processors whose one kernel is ours."""

    class Kernel:
        shared_bytes = 0

        def set_shared_memory_config(self, shared_bytes):
            self.shared_bytes = shared_bytes

        def __call__(self, grid, block, args, shared_mem):
            data, counts, vectors, slice_bits = args
            assert data.data_ptr() % 16 == 0
            assert shared_mem == 4 << slice_bits <= self.shared_bytes
            assert grid[1] << slice_bits == PATTERNS
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (data, counts)]
            launch(*pointers, vectors, slice_bits, grid[0], 4)

    properties = SimpleNamespace(multi_processor_count=3, shared_memory_per_block_optin=232448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    monkeypatch.setattr(torch.cuda, "_compile_kernel", lambda source, name: Kernel())
    return properties


@pytest.mark.parametrize("shared_bytes", [232448, 101376, 49152], ids=["H100", "L40", "old"])
@pytest.mark.parametrize("numel", [1, 8, 4099, 200_000])
def test_the_kernel_counts_what_torch_counts(card, shared_bytes, numel):
    card.shared_memory_per_block_optin = shared_bytes
    bits = torch.randint(-(2**15), 2**15, (numel,), dtype=torch.int16)
    bits[numel // 2 :] = 7
    count = pattern_count._compiled("cpu")
    assert torch.equal(count(bits), torch_count(bits))
    assert torch.equal(count(bits[1:]), torch_count(bits[1:])), "an unaligned start"


def test_more_values_than_one_launch_takes_are_counted_in_parts(card, monkeypatch):
    monkeypatch.setattr(pattern_count, "MOST_VALUES", 1000)
    bits = torch.randint(-(2**15), 2**15, (4321,), dtype=torch.int16)
    assert torch.equal(pattern_count._compiled("cpu")(bits), torch_count(bits))


def test_its_own_check_passes_on_the_kernel_and_fails_on_a_wrong_count(card):
    count = pattern_count._compiled("cpu")
    pattern_count._check(count, "cpu")
    with pytest.raises(RuntimeError, match="otherwise than torch"):
        pattern_count._check(lambda bits: count(bits[:-1]), "cpu")


def test_where_it_does_not_compile_torch_counts_and_says_so(monkeypatch, caplog):
    def refuse(device):
        raise RuntimeError("NVRTC: no such architecture\nmore")

    monkeypatch.setattr(pattern_count, "_compiled", refuse)
    with caplog.at_level(logging.WARNING):
        counter = pattern_count._counter.__wrapped__("cuda:0")
    assert counter is torch_count
    assert "no such architecture" in caplog.text
    assert "using torch" in caplog.text


def test_on_a_processor_patterns_are_counted_as_unsigned():
    counts = count_patterns(torch.tensor([-1, 0, 0, 5], dtype=torch.int16))
    assert counts.dtype == torch.int64
    assert {i: int(counts[i]) for i in np.flatnonzero(counts.numpy())} == {0: 2, 5: 1, 65535: 1}


@pytest.mark.parametrize(("shared_bytes", "bits"), [(232448, 15), (2**18, 16), (101376, 14)])
def test_a_slice_is_the_largest_whose_counters_fit(shared_bytes, bits):
    assert slice_bits_for(shared_bytes) == bits
