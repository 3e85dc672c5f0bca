"""What transformers loads of a folder: in one line what it refuses, and never code of the model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ewq.checkpoint.tensors import is_pointer
from ewq.errors import CheckpointError, EwqError

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "*.tiktoken", "tekken.json"),
)
_REFUSALS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
MISMATCHED = "ignore_mismatched_sizes"
"""In transformers' complaint of weights that do not fit the config."""
_errors: list[Exception] = []
"""Of the conversions of the model being loaded, in order."""


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


@contextmanager
def remembering() -> Iterator[None]:
    """A conversion that fails in this block is what :func:`load_pretrained` raises."""
    try:
        yield
    except (MemoryError, RuntimeError, EwqError) as error:
        # A copy: the error itself would keep its frames, and their tensors, alive.
        _errors.append(type(error)(*error.args))
        raise


def load_pretrained(kind: Any, folder: Path, label: str, **options: Any) -> Any:
    """``kind.from_pretrained(folder, **options)``, with all its weights and no code of its own.

    Raises:
        CheckpointError: files or config make no sense to transformers, or weights are absent.
    """
    with refusals(label):
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **options
        )
    if absent := sorted(report.get("missing_keys") or ()):
        lacks = f"{label} lacks {len(absent)} of the model's weights, such as {absent[0]}"
        raise CheckpointError(f"{lacks}: it is incomplete, or no causal language model")
    return model


@contextmanager
def refusals(label: str) -> Iterator[None]:
    """One line for what transformers says of a model's files and config."""
    from huggingface_hub.errors import StrictDataclassError

    _errors.clear()
    try:
        yield
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"cannot load {label}: {reason}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"cannot load {label}: {first_line(error)}") from error
    except RuntimeError as error:
        if _errors:
            raise _errors[0] from None
        if MISMATCHED not in str(error):
            raise
        reason = "its weights have other shapes than its config.json says"
        raise CheckpointError(f"cannot load {label}: {reason}") from error
    finally:
        _errors.clear()


def first_line(error: Exception) -> str:
    """What an error of loading says, for people."""
    said = str(error).strip() or type(error).__name__
    if "trust_remote_code" in said:
        return "it needs Python code that comes with the model, which ewq never runs"
    return said.splitlines()[0]
