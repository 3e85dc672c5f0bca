"""The error behind transformers' "some issues during automatic conversion of the weights".

While loading, transformers catches whatever a conversion raises, goes on with the next tensor,
and in the end raises a RuntimeError that does not say what happened: running out of memory, for
one, could not be told from anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_found: ContextVar[list[Exception] | None] = ContextVar("conversion errors", default=None)


def noted(convert: Callable[P, T]) -> Callable[P, T]:
    """Decorate a conversion: :func:`told` raises the first error of any."""

    @wraps(convert)
    def noting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return convert(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            found = _found.get()
            if found is not None:
                # A copy: the error itself would keep its frames, and their tensors, alive.
                found.append(type(error)(*error.args))
            raise

    return noting


@contextmanager
def told() -> Iterator[None]:
    """Where loading in this block fails with a RuntimeError, raise the conversion's own."""
    found: list[Exception] = []
    token = _found.set(found)
    try:
        yield
    except RuntimeError:
        if not found:
            raise
        raise found[0] from None
    finally:
        _found.reset(token)
