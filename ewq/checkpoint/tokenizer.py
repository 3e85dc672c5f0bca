"""The tokenizer of a checkpoint: loaded without running code that comes with the model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ewq.checkpoint.tensors import is_pointer
from ewq.conversion_errors import first_line, refusals
from ewq.errors import CheckpointError

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "*.tiktoken", "tekken.json"),
)
_REFUSALS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that a tokenizer may be made from, in order of name."""
    return sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})


def tokenizer_digest(folder: Path) -> str:
    """``sha256:...`` of those files: with another tokenizer nothing measured is the same."""
    digest = hashlib.sha256()
    for file in tokenizer_files(folder):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def load_tokenizer(folder: Path, label: str) -> Any:
    """The ``transformers`` tokenizer of a folder whose model people know as ``label``.

    A CheckpointError names what cannot be read without running code of the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    if (folder / "config.json").is_file():
        # Read for the tokenizer too, which would be blamed for it.
        with refusals(label):
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files that it does not know.
        if type(error) is not Exception and not isinstance(error, _REFUSALS):
            raise
        why = _reason(tokenizer_files(folder), error)
        raise CheckpointError(f"{label} has no usable tokenizer: {why}") from error


def _reason(files: Sequence[Path], error: Exception) -> str:
    for file in files:
        if is_pointer(file):
            return f"{file.name} is a Git LFS pointer; download the file itself"
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return f"{file.name} is not JSON, or cut short; download it again"
    if not files:
        return "the folder has no tokenizer files"
    if "trust_remote_code" in str(error):
        return first_line(error)
    main = next((file for file in files if file.name == "tokenizer.json"), files[0])
    return f"transformers cannot read {main.name} ({first_line(error)})"
