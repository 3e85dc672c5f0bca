"""Loading with transformers, whose own errors do not say what failed, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ewq.errors import CheckpointError, EwqError

MISMATCHED = "ignore_mismatched_sizes"
"""In transformers' complaint of weights that do not fit the config."""
_errors: list[Exception] = []
"""Of the conversions of the model being loaded, in order."""


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
