"""What transformers' errors while loading come from, in one line.

While loading, transformers catches whatever a conversion raises, goes on with the next tensor,
and in the end raises a RuntimeError about "some issues during automatic conversion of the weights"
that does not say what happened: running out of memory, for one, could not be told from anything
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ewq.errors import CheckpointError

P = ParamSpec("P")
T = TypeVar("T")

MISMATCHED = "ignore_mismatched_sizes"
"""In transformers' complaint of weights that do not fit the config."""
_errors: ContextVar[list[Exception] | None] = ContextVar("conversion errors", default=None)


def remember_error(convert: Callable[P, T]) -> Callable[P, T]:
    """Decorate a conversion so that :func:`original_errors` can raise what it raised."""

    @wraps(convert)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return convert(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            errors = _errors.get()
            if errors is not None:
                # A copy: the error itself would keep its frames, and their tensors, alive.
                errors.append(type(error)(*error.args))
            raise

    return remembering


@contextmanager
def original_errors() -> Iterator[None]:
    """Where loading in this block fails with a RuntimeError, raise the conversion's own."""
    errors: list[Exception] = []
    token = _errors.set(errors)
    try:
        yield
    except RuntimeError:
        if not errors:
            raise
        raise errors[0] from None
    finally:
        _errors.reset(token)


@contextmanager
def loading(label: str) -> Iterator[None]:
    """Say in one line why ``from_pretrained`` in this block refuses a model.

    Raises:
        CheckpointError: its files or its config make no sense to transformers.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with original_errors():
            yield
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"cannot load {label}: {reason}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"cannot load {label}: {first_line(error)}") from error
    except RuntimeError as error:
        if MISMATCHED not in str(error):
            raise
        raise CheckpointError(
            f"cannot load {label}: its weights have other shapes than its config.json says"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of loading says, for people."""
    said = str(error).strip() or type(error).__name__
    if "trust_remote_code" in said:
        return "it needs Python code that comes with the model, which ewq never runs"
    return said.splitlines()[0]


def require_all_weights(label: str, loading: Mapping[str, Any]) -> None:
    """Refuse a model that transformers completed with random values, which it only logs.

    Args:
        label: the model's name for people.
        loading: what ``from_pretrained(output_loading_info=True)`` returns beside the model.

    Raises:
        CheckpointError: the checkpoint lacks weights.
    """
    absent = sorted(loading.get("missing_keys") or ())
    if absent:
        raise CheckpointError(
            f"{label} lacks {len(absent)} of the model's weights, such as {absent[0]}: it is "
            "incomplete, or no causal language model"
        )
