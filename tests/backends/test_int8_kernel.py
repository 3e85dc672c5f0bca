"""The Triton kernels compute bitsandbytes' product: cases run where Triton interprets."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ewq.backends import decoders

CASES = Path(__file__).with_name("int8_kernel_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_every_case_holds_in_the_interpreter():
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:benchmark")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "40 passed" in done.stdout


def test_kernels_are_annotated_by_names_that_triton_can_read():
    """Its interpreter leaves annotations alone; its compiler evaluates them, and refuses others."""
    source = ast.parse(Path(decoders.__file__).with_name("int8_kernel.py").read_text("utf-8"))
    kernels = [
        each
        for each in ast.walk(source)
        if isinstance(each, ast.FunctionDef)
        if any("triton.jit" in ast.unparse(one) for one in each.decorator_list)
    ]
    assert len(kernels) == 2
    for argument in (one for kernel in kernels for one in kernel.args.args):
        name = ast.unparse(argument.annotation)
        assert name in ("int", "float") or name.startswith("tl."), argument.arg


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("rows", [1, 8])
def test_kernels_compile_for_a_gpu_that_is_not_there(rows):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ewq.backends import int8_kernel

    step = int8_kernel.PRODUCTS // (int8_kernel.LINES * rows)
    fixed = {"padded": rows, "lines": int8_kernel.LINES, "step": step, "has_bias": True}
    pointers = {"values": "*i8", "raw": "*fp16", "largest": "*fp32", "weight": "*i8"}
    pointers |= {"scales": "*fp32", "bias": "*fp16", "result": "*fp16", "x": "*fp16"}
    numbers = {"threshold": "fp32", "rows": "i32", "columns": "i32", "outputs": "i32"}
    for kernel, constants in (
        (int8_kernel._multiply, fixed),
        (int8_kernel._quantize, {"width": 4096}),
    ):
        names = kernel.arg_names
        types = {name: (pointers | numbers).get(name, "constexpr") for name in names}
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
