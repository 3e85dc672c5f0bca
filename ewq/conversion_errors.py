"""What transformers' errors while loading come from, in one line.

While loading, transformers catches whatever a conversion raises, goes on with the next tensor,
and in the end raises a RuntimeError about "some issues during automatic conversion of the weights"
that does not say what happened: running out of memory, for one, could not be told from anything
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

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


def first_line(error: Exception) -> str:
    """What an error of loading says, for people."""
    said = str(error).strip() or type(error).__name__
    if "trust_remote_code" in said:
        return "it needs Python code that comes with the model, which ewq never runs"
    return said.splitlines()[0]
